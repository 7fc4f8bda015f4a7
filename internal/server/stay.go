package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/dialect"
)

// stay is the context of a request to Ollama. It ends with the client's; where COUNT_GRACE is set and the answer streams, so much
// later, for what is read until then says how many tokens were used. A gateway that is told to stop waits for no such answer.
type stay struct {
	ctx    context.Context
	cancel context.CancelFunc
	s      *Server
	detach []func() bool

	mu      sync.Mutex
	streams bool
	timer   *time.Timer // set when the client has left a stream
}

func (s *stay) open(client context.Context, server *Server) {
	if s.ctx, s.s = client, server; server.CountGrace <= 0 {
		return
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(client))
	stop := context.AfterFunc(client, func() {
		if stopCause(client) != nil || !s.stays() {
			s.cancel()
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detach = append(s.detach, stop)
}

// begin says that the answer streams.
func (s *stay) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = true
}

// stays says whether the answer of a client that has left is read on, and has it end in time.
func (s *stay) stays() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s.CountGrace <= 0 || !s.streams || s.ctx.Err() != nil {
		return false
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(s.s.CountGrace, s.cancel)
		s.detach = append(s.detach, s.timer.Stop, context.AfterFunc(s.s.stopping, s.cancel))
		s.s.readOn.Add(1)
	}
	return true
}

// left says whether the client has left an answer that was read on.
func (s *stay) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timer != nil
}

func (s *stay) end() {
	if s.s.CountGrace <= 0 {
		return
	}
	s.cancel() // and so nothing can be added to detach any more
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stop := range s.detach {
		stop()
	}
	if s.timer != nil {
		s.s.readOn.Add(-1)
	}
}

// outlasting is a context that ends a time later than its client's, so that the rest of an answer which Ollama has generated can be read
// for its usage. A gateway that is told to stop does not wait for it.
func outlasting(client context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(client))
	stop := context.AfterFunc(client, func() {
		if stopCause(client) != nil {
			cancel()
			return
		}
		timer := time.AfterFunc(by, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// nobody takes what is read on for a client that has left.
type nobody struct{ http.ResponseWriter }

func (nobody) Write(p []byte) (int, error) { return len(p), nil }

func (nobody) FlushError() error { return nil }

// passing tells the journal how many pieces of an answer are about to reach the client.
type passing struct {
	*exchange
	b *booking
	m *dialect.Meter
}

func (p *passing) Write(text []byte) (int, error) {
	if n := p.m.Tokens; n > p.b.ahead && p.b.x.route.class == inference {
		p.b.ahead = p.b.s.Books.Passed(p.b.record.ID, n)
	}
	return p.exchange.Write(text)
}
