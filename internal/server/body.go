package server

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

const (
	bodyProgress  = 30 * time.Second // a body that makes no progress for so long is cut
	leastRate     = 4 << 10          // bytes in a second that a body must come with on the whole, after that time
	drainTime     = time.Second      // for the rest of a body that is not used
	readOnTime    = 30 * time.Second // for a body that is refused, of a known key
	readOnUnknown = 5 * time.Second  // and of an unknown one
	mostDrained   = 256 << 10        // bytes that net/http reads by itself before it answers
	firstBuffer   = 512
	// mostUploads bounds the bodies that are on their way at one time. Small ones do not count as memory, and each holds 30 KB all the same:
	// one address can have 51,200 in HTTP/2. One key has at most half of them, the number of requests that can wait in the queue by default.
	mostUploads = 2048
)

// readBody reads the whole body, at most limit bytes. net/http notices a client that leaves only after that. The body is freed at the end
// of the request, or by releaseBody.
func (x *exchange) readBody(limit int64) (*dialect.Body, error) {
	coding, err := x.coding()
	if err != nil {
		return nil, err
	}
	if x.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	control := http.NewResponseController(x.ResponseWriter)
	pushed := time.Time{}
	uploading := false // beyond what came with the head
	defer func() {
		if uploading {
			x.s.uploads.give(x.payer(), 1)
		}
	}()
	x.body = new(dialect.Body)
	err = x.fill(x.body, 0, 0, x.r.ContentLength, limit, func(p []byte) (int, error) {
		if now := time.Now(); now.Sub(pushed) > time.Second {
			// A byte now and then is progress, but it must not hold the connection and what was read for ever.
			took := now.Sub(x.arrived)
			if took > x.s.MaxRequestTime || took > bodyProgress+time.Duration(x.body.Size())*time.Second/leastRate {
				return 0, api.Errorf(api.CodeSlowBody, "the body came too slowly: send it without pauses")
			}
			pushed = now
			// Writers that know no deadlines are those of tests.
			_ = control.SetReadDeadline(now.Add(bodyProgress))
		}
		n, err := x.r.Body.Read(p)
		switch {
		case errors.Is(err, io.EOF):
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = api.Wrap(api.CodeSlowBody, err, "the body did not arrive in time: send it without pauses")
		case err != nil:
			if x.r.ProtoMajor == 1 { // in HTTP/2 other streams would lose their connection
				x.Header().Set("Connection", "close") // the end of this body is unknown
			}
			err = api.Wrap(api.CodeBadRequest, err, "the body could not be read")
		case !uploading:
			if err = x.s.uploads.take(x.payer(), 0, 1); err != nil {
				return n, &api.Error{Code: api.CodeUnavailable, RetryAfter: 5 * time.Second, Err: err, Message: "as many bodies are on their way to the gateway as it may have at one time, or as this key may: send fewer at once"}
			}
			uploading = true
		}
		return n, err
	})
	if err != nil {
		return nil, err
	}
	_ = control.SetReadDeadline(time.Time{})
	x.received, x.consumed = int64(x.body.Size()), true
	if coding != "" {
		if err := x.inTurn(true, func() error { return x.decode(coding, limit) }); err != nil {
			return nil, err
		}
	}
	pieces, outline := x.body.Held()
	return x.body, x.holdUpTo(pieces, outline+x.body.ReadingMemory())
}

// fill reads into b up to the end, at most limit bytes. expected is the length if it is known, and otherwise -1. besides and window are
// what the request holds in addition to b, as in holdUpTo.
func (x *exchange) fill(b *dialect.Body, besides, window int, expected, limit int64, read func([]byte) (int, error)) error {
	for {
		if len(b.Room()) == 0 {
			if int64(b.Size()) > limit {
				return tooLarge(limit)
			}
			n := step(b.Size(), expected, limit)
			pieces, outline := b.Held()
			if err := x.holdUpTo(besides+pieces+n, window+outline); err != nil {
				return err
			}
			b.Grow(n)
		}
		n, err := read(b.Room())
		b.Took(n)
		switch {
		case int64(b.Size()) > limit:
			return tooLarge(limit)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// step is how many bytes of memory a body of this size gets next: no more than it has, so that a body that does not arrive takes none, and
// one byte more than it may have, which tells that there is more.
func step(size int, expected, limit int64) int {
	if expected < 0 {
		expected = limit
	} else if size == 0 {
		return int(min(expected+1, smallBody))
	}
	switch left := int(expected) + 1 - size; {
	case left >= dialect.PieceSize && size >= dialect.PieceSize/2:
		return dialect.PieceSize
	default:
		return max(min(max(size, firstBuffer), left), 1)
	}
}

// readOn takes in the rest of a body that is refused, up to twice what a body may have. Clients that send everything before they read
// (httpx, requests, many SDKs) would otherwise find a broken connection where the answer is. One that has asked whether to send
// (Expect: 100-continue) gets its answer at once, and in HTTP/2 the stream is reset without harm.
func (x *exchange) readOn(code api.Code) {
	most := 2 * x.s.MaxBody
	if x.consumed || x.r.ContentLength == 0 || x.r.ContentLength > most || x.r.ProtoMajor != 1 || x.r.Header.Get("Expect") != "" ||
		code == api.CodeSlowBody || x.s.stopping.Err() != nil {
		return
	}
	x.releaseBody()
	patience := readOnUnknown
	if x.key != nil {
		patience = readOnTime
	}
	n, err := io.Copy(io.Discard, io.LimitReader(&hurried{x, time.Now().Add(patience)}, most))
	x.consumed = err == nil && n < most
	if n > mostDrained {
		x.Header().Set("Connection", "close") // as net/http does behind a body that it has not read
	}
}

// hurried reads a body that must be over at its end, and whose client must not pause.
type hurried struct {
	x   *exchange
	end time.Time
}

func (h *hurried) Read(p []byte) (int, error) {
	if h.x.s.stopping.Err() != nil {
		return 0, context.Canceled
	}
	deadline := time.Now().Add(drainTime)
	if deadline.After(h.end) {
		deadline = h.end
	}
	// Writers that know no deadlines are those of tests.
	_ = http.NewResponseController(h.x.ResponseWriter).SetReadDeadline(deadline)
	return h.x.r.Body.Read(p)
}

func tooLarge(limit int64) error {
	return api.Errorf(api.CodeTooLarge, "the body is larger than %d bytes (MAX_BODY_BYTES)", limit)
}

// coding is how the body is compressed: "", gzip or zstd. Only the /v1 routes take one, as Ollama does; a coding that is not
// undone here would hide the model from us and not from Ollama.
func (x *exchange) coding() (string, error) {
	codings := x.r.Header["Content-Encoding"]
	if len(codings) == 0 {
		return "", nil
	}
	coding := strings.ToLower(codings[0])
	switch {
	case len(codings) > 1:
	case coding == "identity" || coding == "":
		return "", nil
	case x.family != dialect.Native && (coding == "gzip" || coding == "zstd"):
		return coding, nil
	case x.family != dialect.Native:
		return "", api.Errorf(api.CodeUnsupported, "send the body plain, or with Content-Encoding gzip or zstd alone")
	}
	return "", api.Errorf(api.CodeUnsupported, "send the body without Content-Encoding")
}

// maxWindow bounds what a zstd body may make its reader remember: encoders use 8 MiB at their highest usual level.
const maxWindow = 8 << 20

// besidesWindow is what a zstd decoder has in addition to its window: blocks of 128 KiB, literals and tables. That of gzip has less than
// smallBody counts.
const besidesWindow = 1 << 20

// A compressed body may be decoded to mostDecoded bytes, or to mostRatio times its own if that is more. Text in JSON has a ratio of 3 to
// 10, an image of 1.3; only texts that repeat themselves have more.
const (
	mostDecoded = 1 << 20
	mostRatio   = 100
)

// decode undoes a coding. What comes out is bounded like a plain body, because a few KiB can say terabytes.
func (x *exchange) decode(coding string, limit int64) error {
	coded := x.body
	defer coded.Free()
	most := max(mostDecoded, mostRatio*int64(coded.Size()))
	limit = min(limit, most)
	window := windowOf(coding, coded.Head())
	besides, _ := coded.Held()
	x.body = new(dialect.Body)
	extra := 0
	if window > 0 {
		extra = window + besidesWindow
	}
	if err := x.holdUpTo(besides, extra); err != nil {
		return err
	}
	err := decoding(coding, coded.Reader(), window, func(r io.Reader) error { return x.fill(x.body, besides, extra, -1, limit, r.Read) })
	var known *api.Error
	switch {
	case int64(x.body.Size()) > limit && limit == most:
		return api.Errorf(api.CodeTooLarge, "the body is more than %d times as large as it was sent: send it without Content-Encoding", mostRatio)
	case errors.As(err, &known):
		return err
	case err != nil:
		return notCoded(coding, err)
	}
	return nil
}

// windowOf is how much of what it has said a body makes its reader remember: what its first frame asks for, 0 for gzip.
func windowOf(coding string, body []byte) int {
	var first zstd.Header
	switch {
	case coding != "zstd":
		return 0
	case first.Decode(body) != nil || first.Skippable:
		return maxWindow
	}
	window := first.WindowSize
	if first.SingleSegment {
		window = first.FrameContentSize
	}
	return int(min(max(window, zstd.MinWindowSize), maxWindow))
}

// decoding lets read have what the coding says, with at most window remembered.
func decoding(coding string, body io.Reader, window int, read func(io.Reader) error) error {
	if coding == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		return read(z)
	}
	z, err := zstd.NewReader(body,
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(uint64(window)))
	if err != nil {
		return err
	}
	defer z.Close()
	return read(z)
}

// beyond is what one request may hold above its bounds: the byte behind the bound, of its body and of what that is decoded to.
const beyond = 2

// smallBody is what a body may have without being counted: 1,024 that wait have 16 MiB.
const smallBody = dialect.WholeBody

// hold counts n bytes as what the request holds of bodies, all copies included, until its end: a key without a bound of requests at one
// time could fill the memory otherwise, and a few KiB that say 128 MiB when they are decoded make that cheap. It returns
// CodeUnavailable if there is no room for them.
func (x *exchange) hold(n int) error {
	want := int64(n)
	if n <= smallBody {
		want = 0
	}
	switch more := want - x.held; {
	case more > 0:
		if err := x.s.bodies.take(x.payer(), x.held, more); err != nil {
			return err
		}
	case more < 0:
		x.s.bodies.give(x.payer(), -more)
	}
	x.held = want
	return nil
}

// holdUpTo is hold for n bytes, and for extra bytes that reading a body takes: its outline, the names of its fields, of which a few MB can
// take ten times as much, and the window of a decoder. With these no more counts than the bound has, so that a body of the largest size
// always fits.
func (x *exchange) holdUpTo(n, extra int) error {
	return x.hold(max(n, min(n+extra, int(x.s.bodies.most))))
}

// releaseBody undoes hold: the body is not needed any more. Nothing may refer to it.
func (x *exchange) releaseBody() {
	if x.body != nil {
		x.body.Free()
		x.body = nil
	}
	if x.held > 0 {
		x.s.bodies.give(x.payer(), x.held)
		x.held = 0
	}
}

// payer is whose memory a body takes: without a key, all clients together are one payer.
func (x *exchange) payer() string {
	if x.key == nil {
		return ""
	}
	return x.key.Payer()
}

func notCoded(coding string, err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return api.Wrap(api.CodeBadRequest, err, "the body needs a window of more than 8 MiB, or a larger one than its first frame: compress it at a lower level, as one frame")
	}
	return api.Wrap(api.CodeBadRequest, err, "the body is not what its Content-Encoding says: "+coding)
}
