package server

import (
	"bytes"
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

// readBody reads the whole body, at most limit bytes. net/http notices a client that leaves only after that. It holds twice the body,
// because what the gateway changes in one goes into a copy.
func (x *exchange) readBody(limit int64) ([]byte, error) {
	coding, err := x.coding()
	if err != nil {
		return nil, err
	}
	if x.r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	size, expected := int64(firstBuffer), limit
	if x.r.ContentLength >= 0 {
		// What a client claims is not what it gets before it sends it.
		expected = x.r.ContentLength
		size = min(expected, smallBody-1) + 1
	}
	control := http.NewResponseController(x.ResponseWriter)
	body := make([]byte, 0, size)
	if err := x.hold(cap(body)); err != nil {
		return nil, err
	}
	pushed := time.Time{}
	uploading := false // beyond what came with the head
	defer func() {
		if uploading {
			x.s.uploads.give(x.payer(), 1)
		}
	}()
	for {
		if int64(len(body)) > limit {
			return nil, tooLarge(limit)
		}
		if len(body) == cap(body) {
			if body, err = x.grow(body, expected); err != nil {
				return nil, err
			}
		}
		if now := time.Now(); now.Sub(pushed) > time.Second {
			// A byte now and then is progress, but it must not hold the connection and what was read for ever.
			if took := now.Sub(x.arrived); took > x.s.MaxRequestTime || took > bodyProgress+time.Duration(len(body))*time.Second/leastRate {
				return nil, api.Errorf(api.CodeSlowBody, "the body came too slowly: send it without pauses")
			}
			pushed = now
			// Writers that know no deadlines are those of tests.
			_ = control.SetReadDeadline(now.Add(bodyProgress))
		}
		n, err := x.r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			_ = control.SetReadDeadline(time.Time{})
			if int64(len(body)) > limit {
				return nil, tooLarge(limit)
			}
			x.received, x.consumed = int64(len(body)), true
			err = x.inTurn(coding != "" || len(body) > largeBody, func() (err error) {
				body, err = x.decode(coding, body, limit)
				return err
			})
			return body, err
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, api.Wrap(api.CodeSlowBody, err, "the body did not arrive in time: send it without pauses")
		case err != nil:
			if x.r.ProtoMajor == 1 { // in HTTP/2 other streams would lose their connection
				x.Header().Set("Connection", "close") // the end of this body is unknown
			}
			return nil, api.Wrap(api.CodeBadRequest, err, "the body could not be read")
		case !uploading:
			if err := x.s.uploads.take(x.payer(), 0, 1); err != nil {
				return nil, &api.Error{Code: api.CodeUnavailable, RetryAfter: 5 * time.Second, Err: err, Message: "as many bodies are on their way to the gateway as it may have at one time, or as this key may: send fewer at once"}
			}
			uploading = true
		}
	}
}

// grow is b with room for more, but never for more than one byte beyond the limit: that byte tells that there is more. While it is
// copied, both count.
func (x *exchange) grow(b []byte, limit int64) ([]byte, error) {
	size := int(max(min(int64(cap(b))*2, limit+1), int64(len(b))+1))
	if err := x.hold(cap(b) + size); err != nil {
		return nil, err
	}
	b = append(make([]byte, 0, size), b...)
	return b, x.hold(size)
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

// decode undoes a coding. What comes out is bounded like a plain body, because a few KiB can say terabytes: so it is measured before
// there is room for it.
func (x *exchange) decode(coding string, body []byte, limit int64) ([]byte, error) {
	if coding == "" {
		return body, x.holdReading(body)
	}
	most := max(mostDecoded, mostRatio*int64(len(body)))
	if most < limit {
		limit = most
	}
	window := windowOf(coding, body)
	if err := x.holdDecoder(cap(body), window); err != nil {
		return nil, err
	}
	var size int64
	err := decoding(coding, body, window, func(r io.Reader) (err error) {
		size, err = io.Copy(io.Discard, io.LimitReader(r, limit+1))
		return err
	})
	switch {
	case err != nil:
		return nil, notCoded(coding, err)
	case size > limit && limit == most:
		return nil, api.Errorf(api.CodeTooLarge, "the body is more than %d times as large as it was sent: send it without Content-Encoding", mostRatio)
	case size > limit:
		return nil, tooLarge(limit)
	}
	if err := x.holdDecoder(cap(body)+int(size), window); err != nil {
		return nil, err
	}
	plain := make([]byte, size)
	if err := decoding(coding, body, window, func(r io.Reader) error { _, err := io.ReadFull(r, plain); return err }); err != nil {
		return nil, notCoded(coding, err)
	}
	return plain, x.holdReading(plain)
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

// holdDecoder is hold for n bytes and a decoder with a window. Of the decoder no more counts than the bound has, so that a body of the
// largest size fits also where it is compressed.
func (x *exchange) holdDecoder(n, window int) error {
	if window == 0 {
		return x.hold(n)
	}
	return x.hold(max(n, min(n+window+besidesWindow, int(x.s.bodies.most))))
}

// decoding lets read have what the coding says, with at most window remembered.
func decoding(coding string, body []byte, window int, read func(io.Reader) error) error {
	if coding == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return err
		}
		return read(z)
	}
	z, err := zstd.NewReader(bytes.NewReader(body),
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
const smallBody = 16 << 10

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

// holdReading counts what reading a body takes in addition to it and its copy: the names of its fields, of which a few MB can take ten
// times as much. No more counts than the bound has, so that a body of the largest size fits also with many names.
func (x *exchange) holdReading(body []byte) error {
	if len(body) <= smallBody {
		return nil
	}
	n := 2 * cap(body)
	return x.hold(max(n, min(n+dialect.ReadingMemory(body), int(x.s.bodies.most))))
}

// releaseBody undoes hold: the body is not needed any more.
func (x *exchange) releaseBody() {
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
