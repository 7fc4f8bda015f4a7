package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// Response is an upstream's answer whose body is not read yet. The caller must close it.
type Response struct {
	Status int
	Header http.Header
	Length int64 // -1 unknown

	up       *Upstream
	conn     *conn
	ctx      context.Context
	stop     func() bool
	reusable bool
	framing  framing
	shut     bool
}

// Close returns the connection to the pool if the body was read to its end. Otherwise it closes the connection, which cancels the
// generation.
func (r *Response) Close() {
	if r.shut {
		return
	}
	r.shut = true
	if r.stop() && r.reusable && r.EndedInOrder() && !r.framing.surplus && (r.conn.br == nil || r.conn.br.Buffered() == 0) {
		r.up.give(r.conn)
		return
	}
	r.conn.shut()
}

// Outlive replaces the context of Do: from now on ctx ends the exchange. If the context of Do has already ended, so has the exchange.
func (r *Response) Outlive(ctx context.Context) {
	if r.stop() {
		r.ctx, r.stop = ctx, context.AfterFunc(ctx, r.conn.shut)
	}
}

// Streams reports whether the answer is a stream of records, and whether the records are server-sent events. The answer's Content-Type
// decides, not the request: a load, an error or an empty prompt gets one object even if the request asked for a stream.
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

// Read reads the body. Its errors are those of Do, and io.EOF at the proper end.
func (r *Response) Read(p []byte) (int, error) {
	if r.shut {
		// The connection may already carry another request.
		return 0, api.Wrap(api.CodeInternal, net.ErrClosed, "an answer was read after it was closed")
	}
	for {
		if r.framing.done {
			return 0, io.EOF
		}
		n, err := r.conn.readBody(p)
		if n, err = r.unframed(p[:n], err); n > 0 || err != nil {
			return n, err
		}
	}
}

// unframed removes the framing from bytes that were read, in place, and returns the length of what remains, with the error of Read.
func (r *Response) unframed(p []byte, err error) (int, error) {
	n, broken := r.framing.strip(p)
	switch {
	case broken != nil:
		err = broken
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		if err = r.framing.ended(); errors.Is(err, io.EOF) {
			return n, io.EOF
		}
	}
	if r.conn.lost.Load() {
		err = errors.Join(errLost, err)
	}
	return n, failure(r.ctx, err, silence, r.conn.end)
}

// EndedInOrder reports whether the body was read to an end that upstream has marked.
func (r *Response) EndedInOrder() bool { return r.framing.done && !r.framing.endless }

// Head reads up to limit bytes of the body and reports whether that is the whole body. If it is not, Head returns one byte more than
// limit.
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
		// One byte more than limit distinguishes a body of that length from a longer one.
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

// Stream passes a stream to send, piece by piece as it comes. send must let the client have a piece at once. Stream returns when the meter
// holds the end back or cuts the stream, or when upstream ends. It returns the number of bytes sent. Its errors are those of Do, and
// CodeClientGone if send fails.
func (r *Response) Stream(send func(p []byte) (int, error), m *dialect.Meter) (sent int64, err error) {
	defer r.conn.dropPiece()
	for {
		p, readErr := r.piece()
		if len(p) > 0 {
			pass, unreadable := m.Feed(p)
			if len(pass) > 0 {
				wrote, err := send(pass)
				sent += int64(wrote)
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
			return sent, r.drain(m, r.conn.takePiece())
		}
	}
}

// piece returns the next bytes of the body, which are valid until the next call, with the error of Read.
func (r *Response) piece() ([]byte, error) {
	if r.shut || r.framing.done {
		_, err := r.Read(nil)
		return nil, err
	}
	p, err := r.conn.readPiece()
	n, err := r.unframed(p, err)
	return p[:n], err
}

// LeaveGap is a silence in which Ollama most likely computes, and writes nothing.
const LeaveGap = 5 * time.Millisecond

// Leave reads on after the client has left, until upstream is silent for a moment or the answer ends, at most for limit, and then
// closes the exchange. Ollama (0.6.5) can lose a slot of a model for good if its connection closes while it writes a record and has
// the next one already.
func (r *Response) Leave(m *dialect.Meter, limit time.Duration) {
	defer r.Close()
	buf := r.conn.takePiece()
	defer r.conn.dropPiece()
	r.conn.stopRolling()
	for end := time.Now().Add(limit); !m.Ended() && !m.Cut; {
		now := time.Now()
		if !now.Before(end) || r.conn.SetReadDeadline(now.Add(LeaveGap)) != nil {
			return
		}
		n, readErr := r.Read(buf)
		if _, err := m.Feed(buf[:n]); err != nil || readErr != nil {
			return
		}
	}
}

const drainWait = 100 * time.Millisecond

// drain reads the end of the framing after the last record, so that the connection can be used again. If upstream sends nothing, the
// client waits only for drainWait. If it does send bytes, they are the client's: the meter adds them to the end that it holds back.
func (r *Response) drain(m *dialect.Meter, buf []byte) error {
	r.conn.stopRolling()
	if r.conn.SetReadDeadline(time.Now().Add(drainWait)) != nil {
		return nil // the connection is closed, but the answer is complete
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

// Pass copies the rest of a long body except for its last keep bytes. It returns those, because the caller sends them after it has
// written the record. head is the part that Head has read. If a write to the client fails, Pass still reads the body to its end,
// because the usage is there, and returns CodeClientGone.
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
