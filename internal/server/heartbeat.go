package server

import (
	"cmp"
	"fmt"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/dialect"
)

// heartbeat writes something without meaning into a stream of events while nothing else comes: a model that loads or a long queue is
// silent for minutes, and clients and proxies give up on silence. The first one commits the 200, so that a failure after it is an
// event in the stream. Lines of NDJSON get none: clients of Ollama take each line for a record. A nil heartbeat never beats.
type heartbeat struct {
	x     *exchange
	every time.Duration
	model string // as the client named it
	text  []byte // made with the first one

	mu    sync.Mutex // held by who writes
	timer *time.Timer
	last  time.Time // of the last write
	still bool      // the request's own goroutine decides what is written
}

// beatText is one heartbeat, in the form that every reader of the dialect survives (docs/decisions.md, "The heartbeat").
func (x *exchange) beatText(name string) []byte {
	if x.family != dialect.Anthropic && x.r.Header.Get("X-Stainless-Lang") == "go" {
		// OpenAI's Go SDK up to 3.42 takes a blank line without data for an event and fails. All versions read line by line. Their
		// accumulator refuses a piece with another id than the first.
		return []byte(": waiting\n")
	}
	// go-openai keeps each comment, and with one of them before it can read no error.
	const piece = `data: {"id":"","object":"%s","created":%d,"model":%s,"choices":[{"index":0,%s,"finish_reason":null}]}` + "\n\n"
	model := dialect.Quote(name)
	switch x.route.kind {
	case dialect.OpenAIChat:
		return fmt.Appendf(nil, piece, "chat.completion.chunk", x.arrived.Unix(), model, `"delta":{"role":"assistant","content":""}`)
	case dialect.OpenAICompletions:
		return fmt.Appendf(nil, piece, "text_completion", x.arrived.Unix(), model, `"text":""`)
	case dialect.AnthropicMessages:
		return []byte("event: ping\ndata: {\"type\":\"ping\"}\n\n") // Anthropic's own
	}
	return []byte(": waiting\n\n") // a reader that splits at blank lines would lose an event behind a comment without one
}

// startHeartbeat begins it for requests that are answered with events.
func (s *Server) startHeartbeat(x *exchange, req *dialect.Request) {
	if !req.Stream || x.family == dialect.Native || s.Heartbeat <= 0 {
		return
	}
	h := &heartbeat{x: x, every: s.Heartbeat, model: cmp.Or(req.Alias, req.Sent), last: time.Now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(h.every, h.beat)
	x.beat = h
}

func (h *heartbeat) beat() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.still {
		return
	}
	now := time.Now()
	if wait := h.every - now.Sub(h.last); wait > 0 {
		h.timer.Reset(wait)
		return
	}
	x := h.x
	if !x.started() {
		eventHeader(x.Header())
		x.commit(cmp.Or(x.planned, http.StatusOK))
	}
	if h.text == nil {
		h.text = x.beatText(h.model)
	}
	// A client that is gone is noticed by the request's own goroutine.
	if _, err := x.put(h.text); err != nil || x.flush() != nil {
		return
	}
	h.last = now
	h.timer.Reset(h.every)
}

// eventHeader is what every stream of events has.
func eventHeader(h http.Header) {
	h["Content-Type"] = []string{"text/event-stream"}
	h["X-Accel-Buffering"] = []string{"no"} // an nginx in front must not hold a stream back
}

// lock is held while something else is written.
func (h *heartbeat) lock() {
	if h != nil {
		h.mu.Lock()
		h.last = time.Now()
	}
}

func (h *heartbeat) unlock() {
	if h != nil {
		h.mu.Unlock()
	}
}

// pause leaves the answer to the request's own goroutine; after it, what was sent can be looked at without the lock.
func (h *heartbeat) pause() {
	if h != nil {
		h.mu.Lock()
		h.still = true
		h.timer.Stop()
		h.mu.Unlock()
	}
}

// resume goes on after pause.
func (h *heartbeat) resume() {
	if h != nil {
		h.mu.Lock()
		h.still, h.last = false, time.Now()
		h.timer.Reset(h.every)
		h.mu.Unlock()
	}
}
