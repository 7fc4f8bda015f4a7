package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// frames are what a framer writes.
func frames(t *testing.T, write func(*http2.Framer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(http2.NewFramer(&b, nil)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// However the bytes of a connection are cut into pieces, its frames weigh the same.
func TestFramesAreCountedInPieces(t *testing.T) {
	for _, c := range []struct {
		name  string
		write func(*http2.Framer) error
		want  int
	}{
		{"a request with a body", func(f *http2.Framer) error {
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 300), EndHeaders: true}),
				f.WriteData(1, false, make([]byte, 9000)), f.WriteData(1, true, nil))
		}, 0},
		{"pings", func(f *http2.Framer) error {
			return errors.Join(f.WritePing(false, [8]byte{}), f.WritePing(true, [8]byte{}))
		}, 2},
		{"resets", func(f *http2.Framer) error {
			return errors.Join(f.WriteRSTStream(1, http2.ErrCodeCancel), f.WriteRSTStream(3, http2.ErrCodeCancel))
		}, 2 * framesForReset},
		{"data that carries nothing", func(f *http2.Framer) error {
			return errors.Join(f.WriteData(1, false, nil), f.WriteData(1, false, []byte("x")), f.WriteDataPadded(1, false, nil, make([]byte, 200)))
		}, 1 + 1 + 1 + 201/perFrameBytes},
		{"data with some padding", func(f *http2.Framer) error { return f.WriteDataPadded(1, false, make([]byte, 9000), make([]byte, 200)) }, 0},
		{"settings, windows, continuations and unknown frames", func(f *http2.Framer) error {
			return errors.Join(f.WriteSettings(), f.WriteWindowUpdate(0, 1), f.WriteContinuation(1, false, nil), f.WriteRawFrame(0xf0, 0, 0, make([]byte, 640)))
		}, 3 + 1 + 640/perFrameBytes},
	} {
		bytes := append([]byte(http2.ClientPreface), frames(t, c.write)...)
		for piece := 1; piece <= len(bytes); piece++ {
			in, got := frameHeads{skip: len(http2.ClientPreface)}, 0
			for at := 0; at < len(bytes); at += piece {
				got += in.sum(bytes[at:min(at+piece, len(bytes))], weighReceived)
			}
			if got != c.want {
				t.Fatalf("%s in pieces of %d bytes: got a weight of %d, want %d", c.name, piece, got, c.want)
			}
		}
	}
}

// A connection may send a number of frames at once, a rate after that, and more for each piece of an answer.
func TestFramesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		go func() {
			var sink [4096]byte
			for {
				if _, err := there.Read(sink[:]); err != nil {
					return
				}
			}
		}()
		c := newCountedConn(tls.Client(here, nil))
		takes := func(what string, n int, want bool) {
			t.Helper()
			for i := range n {
				if !c.take(1) {
					if want {
						t.Fatalf("%s: frame %d is refused", what, i+1)
					}
					c.frames = 0
					return
				}
			}
			if !want {
				t.Errorf("%s: %d frames are not refused", what, n)
			}
		}
		takes("at once", freeFrames, true)
		takes("one more", 1, false)
		time.Sleep(2 * time.Second)
		takes("two seconds later", 2*framesInSecond, true)
		takes("and one more", 1, false)
		piece := frames(t, func(f *http2.Framer) error { return f.WriteData(1, false, []byte(strings.Repeat("x", 200))) })
		for range 100 {
			c.frames += float64(c.out.sum(piece, weighSent))
		}
		takes("after 100 pieces of an answer", 100*framesForData, true)
		takes("and one more", 1, false)
		time.Sleep(time.Hour)
		takes("an hour later", freeFrames, true)
		takes("and one more", 1, false)
	})
}
