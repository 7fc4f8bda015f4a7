package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/explain"
)

// exchange is one request and all that is found out about it. It is the ResponseWriter of its answer, to know what was sent.
type exchange struct {
	http.ResponseWriter
	r       *http.Request
	s       *Server
	live    *Live
	id      string
	theirID string // the client's own for the request, if it is fit to be kept
	arrived time.Time

	path      string // as sent, without a key in front
	encoded   bool   // the path had encoded characters
	pathKey   string
	param     string // the route's parameter, decoded
	family    dialect.Family
	route     *route
	addr      netip.Addr
	forwarded bool // a proxy stands before us, or claims to

	key     *api.Key
	targets []*backend.Backend // whose models it changes
	record  *api.Record        // set from the admission on
	history *explain.History   // nil where it asked for no slot
	journey *journey           // nil where nothing is traced
	status  int                // as sent; 0 before the header
	planned int                // the status that goes out with the first bytes; 0 is 200
	bounded time.Time          // when the deadline of writes was last set
	beat    *heartbeat
	sent    int64
	meter   *dialect.Meter // of the stream that is its answer; nil before there is one

	received int64 // of the body
	held     int64 // bytes of the body that are counted in Server.bodies
	consumed bool  // the body was read to its end
	err      *api.Error
}

// Shared by all answers: they are replaced, never changed.
var noStore, noSniff = []string{"no-store"}, []string{"nosniff"}

func (s *Server) newExchange(w http.ResponseWriter, r *http.Request, live *Live) *exchange {
	x := &exchange{ResponseWriter: w, r: r, s: s, live: live, arrived: time.Now(), id: newID()}
	x.addr, x.forwarded = s.clientAddress(r, live.TrustedProxies)
	h := w.Header()
	h["X-Request-Id"] = []string{x.id}
	// Answers hold what only their key may read. Pages and their assets set their own.
	h["Cache-Control"], h["X-Content-Type-Options"] = noStore, noSniff
	if s.hsts != nil {
		h["Strict-Transport-Security"] = s.hsts
	}
	if theirs := r.Header.Get("X-Request-Id"); theirs != "" && auth.ValidRequestID(theirs) {
		x.theirID = theirs
		h["X-Client-Request-Id"] = []string{theirs}
	}
	return x
}

// newID is a row id: a version 7 UUID, so that rows of one time lie together in the index (RFC 9562).
func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic("no randomness: " + err.Error()) // crypto/rand never fails on a supported system
	}
	return id.String()
}

// WriteHeader, Write and FlushError are for the request's own goroutine; commit, put and flush do their work.
func (x *exchange) WriteHeader(status int) {
	x.beat.lock()
	defer x.beat.unlock()
	x.commit(status)
}

func (x *exchange) commit(status int) {
	if x.status == 0 {
		x.boundWrites() // net/http may write before it is asked to, and keeps the deadline of the request before
		x.status = status
		if x.family == dialect.Anthropic {
			x.Header()["Request-Id"] = []string{x.id} // where their SDKs look for it
		}
		x.boundDrain()
	}
	x.ResponseWriter.WriteHeader(status)
}

// boundDrain keeps who never sends the body that was announced from holding the answer and the connection: net/http reads
// up to 256 KiB of an unread body before it writes the header, and without a deadline.
func (x *exchange) boundDrain() {
	if x.r.ContentLength == 0 || x.consumed {
		return
	}
	// Writers that know no deadlines are those of tests.
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(time.Now().Add(drainTime))
}

func (x *exchange) Write(p []byte) (int, error) {
	x.beat.lock()
	defer x.beat.unlock()
	if x.status == 0 {
		x.commit(cmp.Or(x.planned, http.StatusOK))
	}
	return x.put(p)
}

func (x *exchange) put(p []byte) (int, error) {
	x.boundWrites()
	n, err := x.ResponseWriter.Write(p) //nolint:gosec // answers are JSON, events or text with nosniff; pages are our own files
	x.sent += int64(n)
	x.unboundWrites()
	return n, err
}

// FlushError sends what was written. It is what http.ResponseController calls.
func (x *exchange) FlushError() error {
	x.beat.lock()
	defer x.beat.unlock()
	return x.flush()
}

func (x *exchange) flush() error {
	x.boundWrites()
	err := http.NewResponseController(x.ResponseWriter).Flush()
	x.unboundWrites()
	return err
}

// boundWrites bounds the next write: a client that takes nothing for so long is cut, and its slot is free. It is set anew at most
// once in a second, because each time takes a lock.
func (x *exchange) boundWrites() {
	now := time.Now()
	if now.Sub(x.bounded) < min(time.Second, x.s.writeProgress/8) {
		return
	}
	x.bounded = now
	// Writers that know no deadlines are those of tests.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(now.Add(x.s.writeProgress))
}

// unboundWrites takes the bound away again in HTTP/2, where it would end the stream when it passes though nobody writes.
func (x *exchange) unboundWrites() {
	if x.r.ProtoMajor == 2 {
		x.bounded = time.Time{}
		_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Time{})
	}
}

// lastWrite bounds what net/http writes after the handler has returned: in HTTP/2 an answer below 4 KiB goes out only then, and a
// client that opens no window for it would hold it, and the handler's goroutine, for ever.
func (x *exchange) lastWrite() {
	if x.r.ProtoMajor == 2 {
		x.bounded = time.Time{}
		x.boundWrites()
	}
}

// Unwrap lets http.ResponseController reach the connection, to flush and to set deadlines.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// fromHere says whether the request certainly comes from a program on this machine: neither through a proxy nor by way of
// somebody's page in a browser. A trusted proxy that names no client might be one that forgot to.
func (x *exchange) fromHere() bool {
	return x.addr.IsLoopback() && !x.forwarded && !within(x.addr, x.live.TrustedProxies)
}

func (x *exchange) started() bool { return x.status != 0 }

func (x *exchange) template() string {
	if x.route == nil {
		return "(none)"
	}
	return x.route.template
}

// who is how a refusal is counted: by key, or where no key is known by address. Of IPv6 that is the network, because each client has
// 2⁶⁴ addresses.
func (x *exchange) who() string {
	if x.key != nil {
		return x.key.Preview
	}
	if x.addr.Is6() {
		return auth.Neighbourhood(x.addr).String()
	}
	return addressText(x.addr)
}

// loggedStatus is the status sent; 499 for a client that left before one was.
func (x *exchange) loggedStatus() int {
	if x.status == 0 && x.err != nil && x.err.Code == api.CodeClientGone {
		return statusClientGone
	}
	return x.status
}

// whoLeft tells a client that went away from a gateway that is told to stop: both end the request's context.
func (x *exchange) whoLeft(err error) *api.Error {
	e := api.AsError(err)
	if e.Code != api.CodeClientGone {
		return e
	}
	if stopping := stopCause(x.r.Context()); stopping != nil {
		return stopping
	}
	return e
}

// stopCause is the error with which a gateway that is told to stop ends the contexts of its requests; nil if ctx has not ended so.
func stopCause(ctx context.Context) *api.Error {
	var e *api.Error
	errors.As(context.Cause(ctx), &e)
	return e
}

// attrs are the log fields of what was served.
func (x *exchange) attrs() []slog.Attr {
	total := time.Since(x.arrived)
	attrs := []slog.Attr{slog.Float64("ms", api.Milliseconds(total)), slog.Int64("bytes", x.sent)}
	r := x.record
	if r == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("model", r.Model), slog.String("outcome", string(r.Outcome)), slog.Bool("streamed", r.Streamed),
		slog.Int64("prompt_tokens", r.PromptTokens), slog.Int64("completion_tokens", r.CompletionTokens),
		slog.Float64("ttfb_ms", api.Milliseconds(r.FirstByte)), slog.Float64("slot_ms", api.Milliseconds(r.Slot)), slog.Float64("gpu_ms", api.Milliseconds(max(r.GPU, 0))), slog.Int64("bytes_in", r.BytesIn), slog.String("backend", r.Backend))
	attrs = append(attrs, x.history.Attrs()...)
	if r.Alias != "" {
		attrs = append(attrs, slog.String("asked_for", r.Alias))
	}
	if r.Estimated {
		attrs = append(attrs, slog.Bool("estimated", true))
	}
	return attrs
}
