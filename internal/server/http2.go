package server

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// The bounds of frames that an HTTP/2 connection may send in addition to requests and their bodies: at once, for each second, and for each
// piece of an answer that it gets, because some clients (Dart's) acknowledge each piece with two frames. A reset counts more, because its
// request has already cost something. Measured on two cores, two connections with 300,000 such frames a second delayed the requests of
// others from 0.2 ms to between 20 and 40 ms. net/http only bounds its own unread answers to frames, and requests that have not begun.
const (
	freeFrames     = 5000
	framesInSecond = 500
	framesForData  = 2
	framesForReset = 5
	perFrameBytes  = 64 // a frame counts once more for each 64 bytes
)

const (
	// smallData is below what a frame of a body counts as one that carries nothing.
	smallData = 16
	// paddedData is what a padded one must have: up to 256 bytes of it are padding.
	paddedData = 256 + smallData
)

// serveHTTP2 makes h count the frames of HTTP/2, which it only speaks over TLS. It uses the HTTP/2 of golang.org/x/net, from which that of
// net/http is copied, because net/http has no hook for a connection's frames. x/net's server is deprecated in favor of net/http's, which
// cannot do this.
//
//nolint:staticcheck // see above
func serveHTTP2(h *http.Server) error {
	own := &http2.Server{}
	if err := http2.ConfigureServer(h, own); err != nil {
		return err
	}
	h.TLSNextProto[http2.NextProtoTLS] = func(h *http.Server, c *tls.Conn, handler http.Handler) {
		var ctx context.Context
		if base, ok := handler.(interface{ BaseContext() context.Context }); ok { // as net/http's own HTTP/2 finds it
			ctx = base.BaseContext()
		}
		own.ServeConn(newCountedConn(c), &http2.ServeConnOpts{Context: ctx, Handler: handler, BaseConfig: h})
	}
	return nil
}

// countedConn is a connection of HTTP/2 that ends when it has sent more frames than it may.
type countedConn struct {
	*tls.Conn
	in, out frameHeads

	mu     sync.Mutex
	frames float64 // that it may still send
	at     time.Time
}

func newCountedConn(c *tls.Conn) *countedConn {
	return &countedConn{Conn: c, in: frameHeads{skip: len(http2.ClientPreface)}, frames: freeFrames, at: time.Now()}
}

// Read returns an error of HTTP/2 for too many frames, which the server answers by GOAWAY.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if weight := c.in.sum(p[:n], weighReceived); weight > 0 && !c.take(float64(weight)) {
		return 0, http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	if weight := c.out.sum(p, weighSent); weight > 0 {
		c.mu.Lock()
		c.frames = min(c.frames+float64(weight), freeFrames)
		c.mu.Unlock()
	}
	return c.Conn.Write(p)
}

func (c *countedConn) take(weight float64) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames = min(c.frames+now.Sub(c.at).Seconds()*framesInSecond, freeFrames)
	c.at = now
	c.frames -= weight
	return c.frames >= 0
}

// frameHead is what a frame begins with (RFC 9113, 4.1).
type frameHead struct {
	kind   http2.FrameType
	flags  http2.Flags
	length int
}

// weighReceived is what a frame of a client counts: nothing for those that a request and its body are made of.
func weighReceived(h frameHead) int {
	switch h.kind {
	case http2.FrameHeaders:
		return 0
	case http2.FrameData:
		least := smallData
		if h.flags.Has(http2.FlagDataPadded) {
			least = paddedData
		}
		if h.length >= least || h.flags.Has(http2.FlagDataEndStream) {
			return 0
		}
	case http2.FrameRSTStream:
		return framesForReset
	}
	return 1 + h.length/perFrameBytes
}

// weighSent is how many frames a client may send more for a frame that it is sent.
func weighSent(h frameHead) int {
	if h.kind == http2.FrameData {
		return framesForData
	}
	return 0
}

// frameHeads finds where frames begin in what a connection carries.
type frameHeads struct {
	skip int // bytes until the next one begins
	head [9]byte
	has  int // bytes of the head
}

// sum adds up the weights of the frames that begin in p.
func (f *frameHeads) sum(p []byte, weigh func(frameHead) int) (weight int) {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(p))
			f.skip, p = f.skip-n, p[n:]
			continue
		}
		n := copy(f.head[f.has:], p)
		f.has, p = f.has+n, p[n:]
		if f.has < len(f.head) {
			return weight
		}
		f.has = 0
		f.skip = int(binary.BigEndian.Uint32(f.head[:4]) >> 8)
		weight += weigh(frameHead{kind: http2.FrameType(f.head[3]), flags: http2.Flags(f.head[4]), length: f.skip})
	}
	return weight
}
