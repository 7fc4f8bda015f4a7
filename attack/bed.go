//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The parties of every run.
const (
	victimCount = 8
	inFlight    = 2 // concurrent requests of each victim: a closed loop, so that each victim always has one waiting
	victimModel = "work"
)

// bed is one gateway in front of one Ollama, with the keys of the victims.
type bed struct {
	*gateway
	dir     string
	backend upstream
	victims []string
	prompt  string
	padding string
	answer  int // tokens that a victim asks for

	mu      sync.Mutex
	samples []sample
}

// upstream is the Ollama of a bed: scripted or real.
type upstream interface {
	address() string
	books(mark string) work
	loadsEnded() (ended, aborted int)
	lostSlots() int     // that the victims' model has lost for good
	cpu() time.Duration // processor time so far; 0: it needs none
	stop()
}

// sample is one request of a victim.
type sample struct {
	ended        time.Time
	took, waited time.Duration
	failure      string
}

// newBed starts the gateway, creates the keys and loads the victims' model.
func newBed(r *run, a *attack, o upstream) (*bed, error) {
	dir, err := os.MkdirTemp(r.dir, "bed-")
	if err != nil {
		return nil, err
	}
	b := &bed{dir: dir, backend: o, answer: r.answer, padding: strings.Repeat(" ", a.padding)}
	b.prompt = "a " + victimMark + " asks " + strings.Repeat("hello there ", 20)
	address := o.address() + "?slots=4"
	if a.found {
		address = o.address()
	}
	if b.gateway, err = startGateway(r.program, dir, address, a.settings, a.tls); err != nil {
		return nil, err
	}
	for i := range victimCount {
		key, err := b.newKey(fmt.Sprint("victim ", i), "")
		if err != nil {
			b.close()
			return nil, err
		}
		b.victims = append(b.victims, key)
	}
	// When a load replaces a model, the gateway learns how many models fit, and how long loads take.
	models := []string{victimModel, cold(0), victimModel}
	if a.fresh {
		models = models[:1]
	}
	for _, model := range models {
		body := strings.NewReader(prompt(victimMark, model, 1, ""))
		if status, _, err := b.post(context.Background(), b.http, generate, b.victims[0], body, nil); status != http.StatusOK {
			b.close()
			return nil, fmt.Errorf("the first request for %s: status %d, %w", model, status, err)
		}
	}
	return b, nil
}

func (b *bed) close() {
	b.stop()
	b.backend.stop()
	os.RemoveAll(b.dir)
}

// once sends one request of a victim.
func (b *bed) once(ctx context.Context, key string) sample {
	began := time.Now()
	s := sample{}
	// Each prompt begins differently. Otherwise all victims would have one prompt in the cache of a real Ollama, which others' prompts push out.
	body := fmt.Sprintf(`{"model":%q,"prompt":"%08x %s",%s"options":{"num_predict":%d},"stream":%t}`,
		victimModel, rand.Uint32(), b.prompt, b.padding, b.answer, rand.IntN(2) == 0)
	status, head, err := b.post(ctx, b.http, generate, key, strings.NewReader(body), nil)
	switch {
	case err != nil:
		s.failure = err.Error()
	case status != http.StatusOK:
		s.failure = strconv.Itoa(status)
	}
	if ms, err := strconv.Atoi(head.Get("X-Queue-Wait-Ms")); err == nil {
		s.waited = time.Duration(ms) * time.Millisecond
	}
	s.ended = time.Now()
	s.took = s.ended.Sub(began)
	return s
}

// post reads the answer to its end.
func (g *gateway) post(
	ctx context.Context, c *http.Client, path, key string, body io.Reader, more http.Header,
) (status int, head http.Header, err error) {
	r, err := http.NewRequestWithContext(ctx, "POST", g.url+path, body)
	if err != nil {
		return 0, nil, err
	}
	maps.Copy(r.Header, more)
	r.Header.Set("Authorization", "Bearer "+key)
	resp, err := c.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header, err
}

// busy makes every victim send one request after the other, until the returned function is called.
func (b *bed) busy() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, key := range b.victims {
		for range inFlight {
			all.Go(func() {
				for ctx.Err() == nil {
					s := b.once(context.Background(), key) // the last request is completed too
					b.mu.Lock()
					b.samples = append(b.samples, s)
					b.mu.Unlock()
					if s.failure != "" {
						pause(ctx, 20*time.Millisecond)
					}
				}
			})
		}
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// served is what the victims got in a window.
type served struct {
	Answers     int           `json:"answers"`
	PerSecond   float64       `json:"per_second"`
	P99         time.Duration `json:"p99_ns"`
	LongestWait time.Duration `json:"longest_wait_ns"`
	CPU         time.Duration `json:"ollama_cpu_ns"` // processor time of Ollama
	Failures    int           `json:"failures"`
	Failure     string        `json:"failure,omitempty"` // the text of one of the failures
}

// window waits for d and reports what the victims got in that time. A wait counts if it ended in the window.
func (b *bed) window(d time.Duration) served {
	b.mu.Lock()
	b.samples = nil
	b.mu.Unlock()
	began, cpu := time.Now(), b.backend.cpu()
	time.Sleep(d)
	b.mu.Lock()
	defer b.mu.Unlock()
	d = time.Since(began)
	var took []time.Duration
	s := served{CPU: b.backend.cpu() - cpu}
	for _, x := range b.samples {
		s.LongestWait = max(s.LongestWait, x.waited)
		if x.failure != "" {
			s.Failures++
			s.Failure = x.failure
			continue
		}
		took = append(took, x.took)
	}
	slices.Sort(took)
	s.Answers = len(took)
	s.PerSecond = float64(len(took)) / d.Seconds()
	if len(took) > 0 {
		s.P99 = took[(len(took)*99)/100]
	}
	return s
}
