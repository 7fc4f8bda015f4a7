package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/uuid"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/dialect"
)

// exchange is one request and everything the gateway knows about it. It is also the ResponseWriter of the answer, so that it knows what
// was sent.
type exchange struct {
	http.ResponseWriter
	r       *http.Request
	s       *Server
	live    *Live
	id      string
	theirID string // the client's own id for the request, if it is valid
	arrived time.Time

	sender
	destination
	intake
	observers
	reply
	wire
}

// sender is the origin of a request.
type sender struct {
	addr      netip.Addr
	forwarded bool // the request came through a proxy, or claims so
	key       *api.Key
	repeats   bool // its bad key is one of too many, or was sent before: its line may be left out of the log
}

// destination is what a request's path names.
type destination struct {
	path    string // as sent, without a leading key
	encoded bool   // the path had encoded characters
	pathKey string
	param   string // the route's parameter, decoded
	family  dialect.Family
	route   *route
}

// intake is what was read of a request's body.
type intake struct {
	received int64         // bytes
	body     *dialect.Body // nil when it is not needed any more
	held     int64         // bytes that Server.bodies counts
	consumed bool          // the body was read to its end
}

// reply is what was sent of the answer.
type reply struct {
	status  int       // as sent; 0 before the header
	planned int       // the status to send with the first bytes; 0 means 200
	bounded time.Time // when the write deadline was last set
	beat    *heartbeat
	sent    int64          // bytes
	meter   *dialect.Meter // of the answer's stream; nil before it begins
	err     *api.Error     // why the request failed
}

// All answers share these slices. Replace them in a header; never change their elements.
var noStore, noSniff = []string{"no-store"}, []string{"nosniff"}

func (s *Server) newExchange(w http.ResponseWriter, r *http.Request, live *Live) *exchange {
	x := &exchange{ResponseWriter: w, r: r, s: s, live: live, arrived: time.Now(), id: newID()}
	x.addr, x.forwarded = s.clientAddress(r, live.TrustedProxies)
	h := w.Header()
	h["X-Request-Id"] = []string{x.id}
	// Only the key of the request may read the answer. Pages and their assets set their own headers.
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

// newID returns a row id: a version 7 UUID, so that rows of the same time are close together in the index (RFC 9562).
func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic("no randomness: " + err.Error()) // crypto/rand never fails on a supported system
	}
	return id.String()
}

// WriteHeader, Write and FlushError are for the request's own goroutine and take the heartbeat's lock. commit, put and flush do the work.
func (x *exchange) WriteHeader(status int) {
	x.beat.lock()
	defer x.beat.unlock()
	x.commit(status)
}

func (x *exchange) commit(status int) {
	if x.status == 0 {
		x.boundWrites() // net/http may write early, and it keeps the deadline of the previous request
		x.status = status
		if x.family == dialect.Anthropic {
			x.Header()["Request-Id"] = []string{x.id} // where their SDKs look for it
		}
		x.boundDrain()
	}
	x.ResponseWriter.WriteHeader(status)
}

// boundDrain sets a read deadline for the rest of the request body. Before net/http writes the header, it reads up to 256 KiB of an unread
// body without a deadline. A client that announces a body and never sends it would hold the answer and the connection.
func (x *exchange) boundDrain() {
	if x.r.ContentLength == 0 || x.consumed {
		return
	}
	// Only the writers of tests do not support deadlines.
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
	if x.taken {
		if len(p) > 0 {
			x.appendChunk(p)
		}
		return len(p), nil
	}
	x.boundWrites()
	x.flushed = false
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
	if x.taken {
		return x.sendChunks()
	}
	x.boundWrites()
	err := http.NewResponseController(x.ResponseWriter).Flush()
	x.flushed = err == nil
	x.unboundWrites()
	return err
}

// boundWrites sets the deadline of the next write. A client that accepts no byte until then is disconnected, which frees its slot. The
// deadline is set at most once a second, because setting it takes a lock.
func (x *exchange) boundWrites() {
	now := time.Now()
	if now.Sub(x.bounded) < min(time.Second, x.s.writeProgress/8) {
		return
	}
	x.bounded = now
	// Only the writers of tests do not support deadlines.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(now.Add(x.s.writeProgress))
}

// unboundWrites removes the write deadline in HTTP/2. There, a deadline that passes ends the stream even if no write is waiting.
func (x *exchange) unboundWrites() {
	if x.r.ProtoMajor == 2 {
		x.bounded = time.Time{}
		_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Time{})
	}
}

// lastWrite bounds what net/http writes after the handler has returned. In HTTP/2, net/http sends an answer below 4 KiB only then. A
// client that opens no window for it would hold the answer and the handler's goroutine forever.
func (x *exchange) lastWrite() {
	if x.r.ProtoMajor == 2 {
		x.bounded = time.Time{}
		x.boundWrites()
	}
}

// Unwrap lets http.ResponseController reach the connection, to flush and to set deadlines.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// fromHere reports whether the request certainly comes from a program on this machine: neither through a proxy nor from a web page in a
// browser. An address in TRUSTED_PROXIES does not count, because a misconfigured proxy may not name its client.
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

// who returns the label under which a refusal is counted: the key, or the address if no key is known. For IPv6 it is the network, because
// each client has 2⁶⁴ addresses.
func (x *exchange) who() string {
	if x.key != nil {
		return x.key.Preview
	}
	if x.addr.Is6() {
		return auth.Neighbourhood(x.addr).String()
	}
	return addressText(x.addr)
}

// asError converts err to an *api.Error. Both a client that leaves and a gateway that stops end the request's context; asError tells them
// apart.
func (x *exchange) asError(err error) *api.Error {
	e := api.AsError(err)
	if e.Code != api.CodeClientGone {
		return e
	}
	if stopping := stopCause(x.r.Context()); stopping != nil {
		return stopping
	}
	return e
}

// stopCause returns the error with which a stopping gateway ends the contexts of its requests, or nil if ctx has not ended that way.
func stopCause(ctx context.Context) *api.Error {
	var e *api.Error
	errors.As(context.Cause(ctx), &e)
	return e
}

// sendJSON, send and answer send a complete answer that the gateway itself has written.
func (x *exchange) sendJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.send("application/json", b)
}

func (x *exchange) send(contentType string, body []byte) error {
	return x.answer(http.StatusOK, contentType, body)
}

func (x *exchange) answer(status int, contentType string, body []byte) error {
	body, err := x.pack(body)
	if err != nil {
		return err
	}
	h := x.Header()
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(status)
	if x.r.Method == http.MethodHead {
		return nil
	}
	if _, err := x.Write(body); err != nil {
		return api.Wrap(api.CodeClientGone, err, "the client went away")
	}
	return nil
}
