// Package proxy sends one request to one Ollama server and returns its answer. It is a small HTTP/1.1 client with pooled connections. It
// also copies a stream to the client through a meter. docs/decisions.md explains why the client is our own.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/dialect"
)

const (
	maxHeader   = 64 << 10
	maxInformal = 8 // 1xx answers skipped before the final one
)

// Upstream is one Ollama server and its pool of connections. It does not follow redirects, use a proxy from the environment, or ask for
// compression.
type Upstream struct {
	target *dial.Target
	host   string // the Host header with the server's own name: Ollama on loopback refuses other names

	mu     sync.Mutex
	idle   []*conn // the most recent last: it is the least likely to be stale
	busy   map[*conn]struct{}
	closed bool
	outage
}

// NewUpstream returns a pool for the server at target.
func NewUpstream(target *dial.Target) *Upstream {
	u := &Upstream{target: target, busy: make(map[*conn]struct{})}
	if target.URL != nil {
		u.host = target.URL.Host
	}
	u.wake = make(chan struct{}, 1)
	target.OnMove(u.moved)
	return u
}

// Request is one request to an upstream. The gateway writes all of it: only two values of the client's header are forwarded.
type Request struct {
	Method, Path      string
	Accept, UserAgent string         // the client's: User-Agent changes what Ollama's /api/show answers
	TraceParent       string         // of our span, if the upstream should get it
	Body              dialect.Pieces // nil sends none
	// Upload is a body that is not buffered (blobs). UploadLength is its length or -1. A request with Upload has no Body and no retry.
	Upload       io.Reader
	UploadLength int64
	// Once forbids to send the request again if a first try may have arrived, because the request changes the server.
	Once bool
	// FirstByte bounds the wait for the answer's header, Idle each silence after it (0: no bound), Deadline the whole request.
	FirstByte, Idle time.Duration
	Deadline        time.Time
}

// ErrUnanswered is in the errors of Do if no byte of an answer came. The request may then go to another server, because no client has seen
// anything from this one.
var ErrUnanswered = errors.New("no byte of an answer came")

// Do sends a request and returns when the answer's header has arrived. If a pooled connection breaks before any byte of an answer, Do
// sends the request once more on a new connection, unless the request may be sent only once.
//
// Its errors have these codes: CodeNoBackend if no connection could be made; CodeUpstreamTimeout; CodeClientGone if ctx ended or the client
// aborted its upload; the code of an *api.Error that Upload returned; otherwise CodeUpstreamError.
func (u *Upstream) Do(ctx context.Context, r *Request) (*Response, error) {
	if err := ctx.Err(); err != nil {
		return nil, failure(ctx, err, noAnswer, r.Deadline)
	}
	var c *conn
	if r.Upload == nil && !r.Once { // a request that cannot be sent twice must not get a connection that may be stale
		c = u.take()
	}
	for tried := false; ; tried = true {
		if c == nil {
			var err error
			if c, err = u.dial(ctx); err != nil {
				if ctx.Err() != nil || tried { // the first try may have reached the server
					return nil, failure(ctx, errors.Join(ErrUnanswered, err), noAnswer, r.Deadline)
				}
				return nil, api.Wrap(api.CodeNoBackend, errors.Join(ErrUnanswered, err), "the Ollama server cannot be reached: try again soon, or ask the operator")
			}
		}
		resp, err := u.roundTrip(ctx, c, r)
		if err == nil {
			return resp, nil
		}
		c.shut()
		unanswered := c.got.Load() == 0 && !errors.Is(err, os.ErrDeadlineExceeded)
		if !unanswered || ctx.Err() != nil || !u.resend(c, r, tried) {
			if c.lost.Load() {
				err = errors.Join(errLost, err)
			}
			if unanswered {
				err = errors.Join(ErrUnanswered, err)
			}
			return nil, failure(ctx, err, noAnswer, r.Deadline)
		}
		c = nil
	}
}

// The messages for a time limit that has passed.
const (
	noAnswer = "the Ollama server did not answer in time: it may be loading a model; try again"
	silence  = "the Ollama server stopped sending in the middle of its answer: try again"
	tooLong  = "the request took longer than MAX_REQUEST_TIME allows: ask for a shorter answer"
)

// failure converts the error that ended an exchange with the upstream. late is the message for a deadline that has passed, unless the
// deadline was end.
func failure(ctx context.Context, err error, late string, end time.Time) *api.Error {
	var named *api.Error
	switch {
	case ctx.Err() != nil:
		return api.Wrap(api.CodeClientGone, err, "the client went away")
	case errors.As(err, &named):
		return named
	case errors.Is(err, os.ErrDeadlineExceeded):
		if !end.IsZero() && !time.Now().Before(end) {
			late = tooLong
		}
		return api.Wrap(api.CodeUpstreamTimeout, err, late)
	default:
		return api.Wrap(api.CodeUpstreamError, dial.Explain(err), "the connection to the Ollama server broke: try again")
	}
}

// roundTrip writes the request and reads the header of its answer. When ctx ends, the connection is closed, which tells Ollama to stop.
func (u *Upstream) roundTrip(ctx context.Context, c *conn, r *Request) (*Response, error) {
	c.begin()
	u.addBusy(c, r)
	stop := context.AfterFunc(ctx, c.shut)
	if err := c.SetDeadline(earlier(r.FirstByte, time.Now(), r.Deadline)); err != nil {
		stop()
		return nil, err
	}
	unsent := u.send(c, r)
	if unsent != nil && !c.answersEarly(unsent) {
		stop()
		return nil, unsent
	}
	header, err := readHeader(c, r.Method) //nolint:bodyclose // Response.Close does
	if err != nil {
		stop()
		return nil, err
	}
	c.roll(r.Idle, r.Deadline)
	return &Response{
		Status: header.StatusCode, Header: header.Header, Length: header.ContentLength, framing: framingOf(header),
		up: u, conn: c, ctx: ctx, stop: stop, reusable: !header.Close && unsent == nil && r.Upload == nil,
	}, nil
}

// readHeader reads the final header of an answer and skips 1xx answers.
func readHeader(c *conn, method string) (*http.Response, error) {
	c.budget = maxHeader
	defer func() { c.budget = -1 }()
	for range maxInformal + 1 {
		resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
		if err != nil {
			switch {
			case errors.Is(c.err, os.ErrDeadlineExceeded):
				err = c.err // ReadResponse reports a line that the deadline cut as malformed
			case errors.Is(err, io.EOF):
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode < 100 {
			return nil, fmt.Errorf("unexpected status %d", resp.StatusCode)
		}
		if resp.StatusCode >= 200 {
			return resp, nil
		}
	}
	return nil, errors.New("too many 1xx answers")
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// send writes head and body. If the body is small, one write sends both: Ollama then has the whole request at once and notices a closed
// connection from then on (docs/ollama-contract.md, section 3).
func (u *Upstream) send(c *conn, r *Request) error {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	b := (*pooled)[:0]
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, u.host...)
	b = append(b, "\r\n"...)
	if a := u.target.Access(); a.Header != "" {
		b = append(append(append(append(b, a.Header...), ": "...), a.Value...), "\r\n"...)
	}
	if r.Accept != "" {
		b = append(append(append(b, "Accept: "...), r.Accept...), "\r\n"...)
	}
	if r.UserAgent != "" {
		b = append(append(append(b, "User-Agent: "...), r.UserAgent...), "\r\n"...)
	}
	if r.TraceParent != "" {
		b = append(append(append(b, "Traceparent: "...), r.TraceParent...), "\r\n"...)
	}
	if r.Upload != nil {
		return sendUpload(c, r, b)
	}
	if r.Body != nil {
		b = append(b, "Content-Type: application/json\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(r.Body.Len()), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if r.Body.Len() <= cap(b)-len(b) {
		for _, p := range r.Body {
			b = append(b, p...)
		}
		_, err := c.Conn.Write(b)
		return err
	}
	parts := append(net.Buffers{b}, r.Body...)
	_, err := parts.WriteTo(c.Conn)
	return err
}

// earlier returns the earlier of now+d and end. A zero d or end means no bound.
func earlier(d time.Duration, now, end time.Time) time.Time {
	if d <= 0 {
		return end
	}
	at := now.Add(d)
	if !end.IsZero() && end.Before(at) {
		return end
	}
	return at
}
