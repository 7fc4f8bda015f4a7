package proxy

import (
	"errors"
	"io"
	"net/http"
)

// maxFramingLine bounds the bytes of framing between two pieces of a body in chunks: a size with its extensions, or the trailers.
const maxFramingLine = 4 << 10

var errFraming = errors.New("the chunks of the answer are malformed")

// framing is where a body is within its framing: chunks, a length, or only the end of the connection. It removes the framing in place
// from bytes as they come, so that a waiting stream holds no buffer. net/http's readers need one that lasts as long as the body.
type framing struct {
	chunked bool
	endless bool  // only the end of the connection ends the body
	left    int64 // bytes of the body, or of the current chunk, that have not come
	size    int64 // of the next chunk, as far as it has been read
	digits  int   // of size
	line    int   // bytes of framing since the last byte of the body
	next    func(f *framing, c byte) bool
	done    bool // the end of the body has come
	surplus bool // bytes came after the end
}

// framingOf returns the framing of the body of an answer whose header was read.
func framingOf(resp *http.Response) framing {
	switch {
	case resp.Body == http.NoBody:
		return framing{done: true}
	case len(resp.TransferEncoding) > 0: // net/http accepts only "chunked"
		return framing{chunked: true, next: (*framing).chunkSize}
	case resp.ContentLength >= 0:
		return framing{left: resp.ContentLength, done: resp.ContentLength == 0}
	}
	return framing{endless: true}
}

// strip removes the framing from p, in place, and returns the length of what remains.
func (f *framing) strip(p []byte) (n int, err error) {
	for i := 0; i < len(p); {
		switch {
		case f.done:
			f.surplus = true
			return n, nil
		case f.endless || f.left > 0:
			body := p[i:]
			if !f.endless {
				body = body[:min(int64(len(body)), f.left)]
				f.left -= int64(len(body))
			}
			n += copy(p[n:], body)
			i += len(body)
			f.done = !f.chunked && !f.endless && f.left == 0
			f.line = 0
		default:
			if f.line++; f.line > maxFramingLine || !f.next(f, p[i]) {
				return n, errFraming
			}
			i++
		}
	}
	return n, nil
}

// ended returns the error for the end of the connection.
func (f *framing) ended() error {
	f.done = f.done || f.endless
	if f.done {
		return io.EOF
	}
	return io.ErrUnexpectedEOF
}

// The states of a body in chunks: each takes one byte and reports whether it is allowed there.

func (f *framing) chunkSize(c byte) bool {
	digit := int64(-1)
	switch {
	case '0' <= c && c <= '9':
		digit = int64(c - '0')
	case 'a' <= c && c <= 'f':
		digit = int64(c-'a') + 10
	case 'A' <= c && c <= 'F':
		digit = int64(c-'A') + 10
	}
	switch {
	case digit >= 0:
		f.size = f.size<<4 | digit
		f.digits++
		return f.digits < 16
	case f.digits == 0:
		return false
	}
	f.next = (*framing).afterSize
	return f.afterSize(c)
}

func (f *framing) afterSize(c byte) bool {
	switch c {
	case '\r':
		f.next = (*framing).endOfSize
	case ';':
		f.next = (*framing).chunkExtension
	case ' ', '\t':
	default:
		return false
	}
	return true
}

func (f *framing) chunkExtension(c byte) bool {
	if c == '\r' {
		f.next = (*framing).endOfSize
	}
	return c != '\n' // RFC 9112 allows a bare LF only in headers
}

func (f *framing) endOfSize(c byte) bool {
	if f.next = (*framing).endOfChunk; f.size == 0 {
		f.next = (*framing).trailer
	}
	f.left, f.size, f.digits = f.size, 0, 0
	return c == '\n'
}

func (f *framing) endOfChunk(c byte) bool {
	f.next = (*framing).lineEndOfChunk
	return c == '\r'
}

func (f *framing) lineEndOfChunk(c byte) bool {
	f.next = (*framing).chunkSize
	return c == '\n'
}

// trailer is at the start of a line. Trailers are dropped.
func (f *framing) trailer(c byte) bool {
	switch c {
	case '\r':
		f.next = (*framing).lastLineEnd
	case '\n':
		f.done = true
	default:
		f.next = (*framing).trailerLine
	}
	return true
}

func (f *framing) trailerLine(c byte) bool {
	if c == '\n' {
		f.next = (*framing).trailer
	}
	return true
}

func (f *framing) lastLineEnd(c byte) bool {
	f.done = true
	return c == '\n'
}
