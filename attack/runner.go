//go:build linux

package main

import (
	"context"
	"slices"
	"time"
)

// runner is one loaded model: its slots, and the batches for all of them. The mutex of ollama guards its fields.
type runner struct {
	ollama         *ollama
	model, options string
	slots          chan struct{}
	wake           chan struct{}
	users          int  // requests that use it or wait for one of its slots
	leaving        bool // it is unloaded when it is idle
	closed         bool
	used           time.Time
	sequences      []*sequence
}

// sequence is a request that holds a slot.
type sequence struct {
	ctx    context.Context
	mark   string
	prompt int // tokens still to be read
	want   int // tokens still to be generated
	pieces chan struct{}
	read   time.Time // when the prompt had been read
	ended  chan struct{}
}

func newRunner(o *ollama, model, options string) *runner {
	r := &runner{ollama: o, model: model, options: options, used: time.Now()}
	r.slots, r.wake = make(chan struct{}, o.parallel), make(chan struct{}, 1)
	go r.run()
	return r
}

func (r *runner) leave() {
	r.ollama.mu.Lock()
	defer r.ollama.mu.Unlock()
	r.users--
	r.used = time.Now()
}

func (r *runner) closeLocked() {
	r.closed = true
	r.nudge()
}

func (r *runner) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// begin adds the slot that the caller holds to the next batch.
func (r *runner) begin(s *sequence) {
	r.ollama.mu.Lock()
	r.sequences = append(r.sequences, s)
	r.ollama.mu.Unlock()
	r.nudge()
}

// run makes one batch after the other while there is work.
func (r *runner) run() {
	next := time.Now()
	for {
		batch, took, closed := r.plan()
		if closed {
			return
		}
		if len(batch) == 0 {
			<-r.wake
			next = time.Now()
			continue
		}
		// It waits by the clock and does not add up sleeps, which are always slightly too long. A slow machine must not hurry
		// afterwards.
		next = next.Add(took)
		if late := time.Since(next); late > took {
			next = next.Add(late - took)
		}
		time.Sleep(time.Until(next))
		r.deliver(batch)
	}
}

// plan returns the next batch and its duration.
func (r *runner) plan() (batch []*sequence, took time.Duration, closed bool) {
	o := r.ollama
	o.mu.Lock()
	defer o.mu.Unlock()
	r.sequences = slices.DeleteFunc(r.sequences, func(s *sequence) bool {
		over := s.prompt == 0 && (s.want == 0 || s.ctx.Err() != nil) // a prompt is read to its end, also of a client that has left
		if over {
			close(s.ended)
		}
		return over
	})
	if len(r.sequences) == 0 {
		return nil, 0, r.closed
	}
	took = o.pace.step
	for _, s := range r.sequences {
		took += o.pace.cost(s)
	}
	return slices.Clone(r.sequences), took, false
}

// cost returns what a sequence adds to a batch.
func (p *pace) cost(s *sequence) time.Duration {
	if s.prompt > 0 {
		return time.Duration(min(s.prompt, batchTokens)) * p.prefill
	}
	return p.decode
}

// deliver gives each sequence its result of the batch. Each has its own cost and an equal part of the fixed cost.
func (r *runner) deliver(batch []*sequence) {
	o := r.ollama
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range batch {
		w := o.markLocked(s.mark)
		w.gpu += o.pace.step/time.Duration(len(batch)) + o.pace.cost(s)
		if s.prompt > 0 {
			n := min(s.prompt, batchTokens)
			s.prompt -= n
			w.tokens += n
			if s.prompt == 0 {
				s.read = time.Now()
			}
			continue
		}
		if s.want > 0 {
			s.want--
			w.tokens++
			s.pieces <- struct{}{} // it has room for all
		}
	}
}
