package server

import (
	"cmp"
	"fmt"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/dialect"
)

// heartbeat writes events without meaning into a silent stream of server-sent events. While a model loads or a request waits in a long
// queue, minutes pass without output, and clients and proxies give up. The first heartbeat commits the status 200, so a later failure is
// sent as an event in the stream. NDJSON streams get no heartbeat, because Ollama's clients read each line as a record. A nil heartbeat
// does nothing.
type heartbeat struct {
	x     *exchange
	every time.Duration
	model string // as the client named it
	text  []byte // built for the first heartbeat

	mu     sync.Mutex // held while writing
	timer  *time.Timer
	last   time.Time // of the last write
	paused bool      // the request's own goroutine writes
}

// beatText returns one heartbeat, in a form that every known client of the dialect accepts (docs/decisions.md, "The heartbeat").
func (x *exchange) beatText(name string) []byte {
	if x.family != dialect.Anthropic && x.r.Header.Get("X-Stainless-Lang") == "go" {
		// OpenAI's Go SDK up to 3.42 reads a blank line without data as an event and fails. All its versions read line by line. Their
		// accumulator refuses a piece whose id differs from the first piece's.
		return []byte(": waiting\n")
	}
	// go-openai keeps each comment, and cannot read an error that follows one.
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
	return []byte(": waiting\n\n") // without the blank line, a reader that splits at blank lines would lose the next event
}

// startHeartbeat starts the heartbeat of a request that is answered with events.
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
	if h.paused {
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
	// The request's own goroutine notices a client that has left.
	if _, err := x.put(h.text); err != nil || x.flush() != nil {
		return
	}
	h.last = now
	h.timer.Reset(h.every)
}

// eventHeader sets the header of a stream of server-sent events.
func eventHeader(h http.Header) {
	h["Content-Type"] = []string{"text/event-stream"}
	h["X-Accel-Buffering"] = []string{"no"} // an nginx in front must not hold a stream back
}

// lock keeps the heartbeat from writing until unlock.
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

// pause stops the heartbeat. After it, the request's own goroutine may read what was sent without the lock.
func (h *heartbeat) pause() {
	if h != nil {
		h.mu.Lock()
		h.paused = true
		h.timer.Stop()
		h.mu.Unlock()
	}
}

// resume restarts the heartbeat after pause.
func (h *heartbeat) resume() {
	if h != nil {
		h.mu.Lock()
		h.paused, h.last = false, time.Now()
		h.timer.Reset(h.every)
		h.mu.Unlock()
	}
}
