package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// Response is an upstream's answer whose body is still to be read. Close it always.
type Response struct {
	Status int
	Header http.Header
	Length int64 // -1 unknown

	body     io.Reader
	up       *Upstream
	conn     *conn
	ctx      context.Context
	stop     func() bool
	reusable bool
	framed   bool // the body says where it ends, other than by the end of the connection
	ended    bool // the body was read to its end
	shut     bool
}

// Close gives the connection back if the body was read to its end, and closes it otherwise: closing is how a generation is
// cancelled.
func (r *Response) Close() {
	if r.shut {
		return
	}
	r.shut = true
	if r.stop() && r.ended && r.reusable && r.conn.br.Buffered() == 0 {
		r.up.give(r.conn)
		return
	}
	r.conn.shut()
}

// Outlive lets ctx end the exchange from now on, instead of the context of Do. If that has ended already, the exchange has ended with it.
func (r *Response) Outlive(ctx context.Context) {
	if r.stop() {
		r.ctx, r.stop = ctx, context.AfterFunc(ctx, r.conn.shut)
	}
}

// Streams says whether the answer is a stream of records, and whether they are server-sent events. The answer's type says
// so, not the request: a load, an error or an empty prompt is answered with one object even where a stream was asked for.
func (r *Response) Streams() (stream, sse bool) {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch strings.TrimSpace(t) {
	case "application/x-ndjson":
		return true, false
	case "text/event-stream":
		return true, true
	}
	return false, false
}

// Read reads the body. Its errors are those of Do; io.EOF is the proper end.
func (r *Response) Read(p []byte) (int, error) {
	if r.shut {
		return 0, api.Wrap(api.CodeInternal, net.ErrClosed, "an answer was read after it was closed") // the connection may be another's by now
	}
	n, err := r.body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		r.ended = true
		return n, io.EOF
	}
	if r.conn.lost.Load() {
		err = errors.Join(errLost, err)
	}
	return n, failure(r.ctx, err, silence, r.conn.end)
}

// EndedInOrder reports whether the body was read to an end that upstream has marked as such.
func (r *Response) EndedInOrder() bool { return r.ended && r.framed }

// Head reads up to limit bytes of the body and says whether that is all of it. If not, body has one byte more than limit.
func (r *Response) Head(limit int) (body []byte, whole bool, err error) {
	size := int64(512)
	if r.Length >= 0 {
		size = min(r.Length, int64(limit)) + 1
	}
	body = make([]byte, 0, size)
	for len(body) <= limit {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		// One byte more than limit tells a body of that length from a longer one.
		n, err := r.Read(body[len(body):min(cap(body), limit+1)])
		body = body[:len(body)+n]
		if errors.Is(err, io.EOF) {
			return body, len(body) <= limit, nil
		}
		if err != nil {
			return body, false, err
		}
	}
	return body, false, nil
}

// copyBuffers are as large as what a connection buffers: records are a few hundred bytes, and every waiting stream holds one.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}

// Stream copies a stream to the client, each piece flushed as it comes, until the meter holds the end back or cuts
// it, or upstream ends.
// It returns the bytes sent. Errors are those of Do, and CodeClientGone where the client cannot be written to.
func (r *Response) Stream(w http.ResponseWriter, m *dialect.Meter) (sent int64, err error) {
	pooled := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(pooled)
	flusher := http.NewResponseController(w)
	for {
		n, readErr := r.Read(*pooled)
		if n > 0 {
			pass, unreadable := m.Feed((*pooled)[:n])
			if len(pass) > 0 {
				wrote, err := w.Write(pass)
				sent += int64(wrote)
				if err == nil {
					err = flusher.Flush()
				}
				if err != nil {
					return sent, api.Wrap(api.CodeClientGone, err, "the client went away")
				}
			}
			if m.Cut {
				return sent, nil
			}
			if unreadable != nil {
				return sent, api.Errorf(api.CodeUpstreamError, "%s", unreadable)
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return sent, nil
		case readErr != nil:
			return sent, readErr
		case m.Ended():
			return sent, r.drain(m, *pooled)
		}
	}
}

const drainWait = 100 * time.Millisecond

// drain reads what may follow the last record, which is the end of the framing, so that the connection can be used again.
// An upstream that stays silent instead costs the client nothing but this bound. Bytes that do come are the client's: the
// meter adds them to what it holds.
func (r *Response) drain(m *dialect.Meter, buf []byte) error {
	r.conn.still()
	if r.conn.SetReadDeadline(time.Now().Add(drainWait)) != nil {
		return nil // closed: the answer is complete all the same
	}
	for range 4 {
		n, readErr := r.Read(buf)
		if _, err := m.Feed(buf[:n]); err != nil {
			return api.Errorf(api.CodeUpstreamError, "%s", err)
		}
		if readErr != nil {
			return nil
		}
	}
	return nil
}

// Pass copies the rest of a long body except for its last keep bytes, which it returns: they are sent when the books are
// written. head is what Head has read. If the client cannot be written to, Pass reads the body to its end all the same, because the usage
// is there; the error is CodeClientGone then.
func (r *Response) Pass(w http.ResponseWriter, head []byte, keep int) (sent int64, tail []byte, err error) {
	tail = head
	buf := make([]byte, 32<<10)
	var left error
	for ended := false; ; {
		if cut := len(tail) - keep; cut > 0 {
			if left == nil {
				n, err := w.Write(tail[:cut])
				sent += int64(n)
				if err != nil {
					left = api.Wrap(api.CodeClientGone, err, "the client went away")
				}
			}
			tail = append(tail[:0], tail[cut:]...)
		}
		if ended {
			return sent, tail, left
		}
		n, err := r.Read(buf)
		tail = append(tail, buf[:n]...)
		if ended = errors.Is(err, io.EOF); err != nil && !ended {
			return sent, tail, cmp.Or(left, err)
		}
	}
}
