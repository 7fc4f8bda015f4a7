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

// pace is the speed of the scripted Ollama. Its proportions are those of a model of 8 billion parameters on one GPU (the model of a
// backend in docs/fairness.md). It is four times as fast, so that an attack needs seconds and not minutes.
type pace struct {
	load    time.Duration // of a model
	step    time.Duration // of one batch, with any content
	decode  time.Duration // in addition, for each answer that gets a token from a batch
	prefill time.Duration // in addition, for each token of a prompt
	grammar time.Duration // before a request with a schema starts; Ollama reports this time in no duration
}

var quick = pace{
	load: 250 * time.Millisecond, step: 5 * time.Millisecond, decode: 800 * time.Microsecond, prefill: 80 * time.Microsecond,
	grammar: 120 * time.Millisecond,
}

// batchTokens is the most tokens of one prompt in one batch: Ollama's num_batch.
const batchTokens = 512

// ollama is a scripted Ollama with a model of time: a memory for some models, its own queue for slots and loads, and batches in
// which the prompts and answers of all slots share the GPU, as in the runner of Ollama 0.6.5.
type ollama struct {
	pace     pace
	parallel int // OLLAMA_NUM_PARALLEL
	memory   int // models that fit
	models   []string

	server  *http.Server
	url     string
	loading chan struct{} // one load at a time, as in Ollama's scheduler

	mu      sync.Mutex
	loaded  map[string]*runner
	loads   int // completed
	aborted int // loads whose client left
	done    map[string]*work
}

// work is the cost of the requests with one mark.
type work struct {
	requests int
	tokens   int // evaluated: the prompts as far as they were read, and every generated token
	gpu      time.Duration
	longest  time.Duration // the longest time that one request was in Ollama
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

// books returns the cost of the requests with a mark since the last call.
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

func (o *ollama) lostSlots() int { return 0 }

func (o *ollama) cpu() time.Duration { return 0 }

// loadsEnded returns how many loads were completed, and how many were cancelled because their client left.
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

// runnerFor returns the runner of a model with these load-time options, or nil if the client has left in the meantime. The caller
// must leave the runner. A load ends with the client that caused it. It waits until the model that it replaces is idle, and it is
// the only load at that time. Ollama 0.6.5 does the same.
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

// enter returns the runner of a model if it is loaded with these options.
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

// makeRoom unloads the models that model needs the memory of, when they are idle.
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

// pause reports whether the client stayed for the whole time.
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
