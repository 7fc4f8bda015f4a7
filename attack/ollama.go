//go:build linux

package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// pace is how fast the scripted Ollama is. Its proportions are those of a model of 8 billion parameters on one GPU (the model of a
// backend in docs/fairness.md), four times as fast, so that an attack needs seconds and not minutes.
type pace struct {
	load    time.Duration // of a model
	step    time.Duration // of one batch, whatever is in it
	decode  time.Duration // more for each answer that a batch brings forward by a token
	prefill time.Duration // more for each token of a prompt
	grammar time.Duration // before a request with a schema begins, in no duration that Ollama reports
}

var quick = pace{
	load: 250 * time.Millisecond, step: 5 * time.Millisecond, decode: 800 * time.Microsecond, prefill: 80 * time.Microsecond,
	grammar: 120 * time.Millisecond,
}

// batchTokens are the most tokens of one prompt in one batch: Ollama's num_batch.
const batchTokens = 512

// ollama is a scripted Ollama with a model of time: a memory that holds some models, a queue of its own for slots and for loads, and
// batches in which prompts and answers of all slots share the GPU, as in the runner of Ollama 0.6.5.
type ollama struct {
	pace     pace
	parallel int // OLLAMA_NUM_PARALLEL
	memory   int // models that fit
	models   []string

	server  *http.Server
	url     string
	loading chan struct{} // one load at a time, as Ollama's scheduler does it

	mu      sync.Mutex
	loaded  map[string]*runner
	loads   int // that ended
	aborted int // loads whose client left
	done    map[string]*work
}

// work is what the requests of one mark cost.
type work struct {
	requests int
	tokens   int // evaluated: prompts as far as they were read, and every token generated
	gpu      time.Duration
	longest  time.Duration // for which one request was in Ollama
}

func startFake(models []string, parallel, memory int, p pace) (*ollama, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &ollama{
		pace: p, parallel: parallel, memory: memory, models: models, url: "http://" + l.Addr().String(), loading: make(chan struct{}, 1),
		loaded: map[string]*runner{}, done: map[string]*work{},
	}
	o.server = &http.Server{Handler: o.routes()}
	go o.server.Serve(l)
	return o, nil
}

func (o *ollama) stop() {
	o.server.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.loaded {
		r.closeLocked()
	}
}

// books are what the requests of a mark have cost since the last call.
func (o *ollama) books(mark string) work {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.done[mark]
	delete(o.done, mark)
	if w == nil {
		return work{}
	}
	return *w
}

// loadsEnded is how many loads have ended, and how many were given up because their client left.
func (o *ollama) loadsEnded() (ended, aborted int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.loads, o.aborted
}

func (o *ollama) markLocked(mark string) *work {
	w := o.done[mark]
	if w == nil {
		w = &work{}
		o.done[mark] = w
	}
	return w
}

func (o *ollama) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("Ollama is running")) })
	mux.HandleFunc("GET /api/version", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, map[string]any{"version": "0.6.5"}) })
	mux.HandleFunc("GET /api/tags", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"models": listing(o.models)})
	})
	mux.HandleFunc("GET /api/ps", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"models": listing(o.inMemory())})
	})
	mux.HandleFunc("POST /api/show", func(w http.ResponseWriter, _ *http.Request) {
		can := []string{"completion", "tools"}
		reply(w, 200, map[string]any{"details": map[string]any{}, "model_info": map[string]any{}, "capabilities": can})
	})
	for _, path := range []string{"/api/generate", "/api/chat", "/api/embed", "/v1/chat/completions"} {
		mux.HandleFunc("POST "+path, o.infer)
	}
	return mux
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func listing(models []string) []any {
	list := []any{}
	for _, m := range models {
		list = append(list, map[string]any{
			"name": m, "model": m, "size": 1, "size_vram": 1, "digest": strings.Repeat("a", 64),
			"modified_at": "2026-01-01T00:00:00Z", "expires_at": "2036-01-01T00:00:00Z", "details": map[string]any{"family": "llama"},
		})
	}
	return list
}

func (o *ollama) inMemory() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for name := range o.loaded {
		names = append(names, name)
	}
	return names
}

// runnerFor is the runner of a model with these load-time options, which the caller must leave; nil if the client has left meanwhile.
// A load ends with the client that caused it, waits until what it replaces is idle, and is the only one: Ollama 0.6.5 does the same.
func (o *ollama) runnerFor(ctx context.Context, model, options string) *runner {
	if r := o.enter(model, options); r != nil {
		return r
	}
	select {
	case o.loading <- struct{}{}:
		defer func() { <-o.loading }()
	case <-ctx.Done():
		return nil
	}
	if r := o.enter(model, options); r != nil {
		return r
	}
	if !o.makeRoom(ctx, model) || !pause(ctx, o.pace.load) {
		o.mu.Lock()
		o.aborted++
		o.mu.Unlock()
		return nil
	}
	r := newRunner(o, model, options)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.loads++
	o.loaded[model] = r
	r.users++
	return r
}

// enter is the runner of a model if it is loaded with these options.
func (o *ollama) enter(model, options string) *runner {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.loaded[model]
	if r == nil || r.leaving || options != r.options {
		return nil
	}
	r.users++
	return r
}

// makeRoom unloads what stands in the way of model, when it is idle.
func (o *ollama) makeRoom(ctx context.Context, model string) bool {
	o.mu.Lock()
	old := o.loaded[model]
	if old == nil && len(o.loaded) >= o.memory {
		for _, r := range o.loaded {
			if old == nil || r.used.Before(old.used) {
				old = r
			}
		}
	}
	if old == nil {
		o.mu.Unlock()
		return true
	}
	old.leaving = true
	for old.users > 0 {
		o.mu.Unlock()
		stays := pause(ctx, time.Millisecond)
		o.mu.Lock()
		if !stays {
			old.leaving = false
			o.mu.Unlock()
			return false
		}
	}
	delete(o.loaded, old.model)
	old.closeLocked()
	o.mu.Unlock()
	return true
}

// pause reports whether the client stayed for all of it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (o *ollama) address() string { return o.url }
