package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/dialect"
)

// upstreamContext is the context of a request to Ollama. By default it ends with the context of the client. If COUNT_GRACE is set and the
// answer streams, it ends COUNT_GRACE later: the gateway reads on after the client has left, because the rest of the stream reports how
// many tokens were used. A gateway that is stopping does not wait for it.
type upstreamContext struct {
	ctx    context.Context
	cancel context.CancelFunc
	s      *Server
	detach []func() bool

	mu      sync.Mutex
	streams bool
	timer   *time.Timer // set when the client has left a stream
}

func (u *upstreamContext) open(client context.Context, server *Server) {
	if u.ctx, u.s = client, server; server.CountGrace <= 0 {
		return
	}
	u.ctx, u.cancel = context.WithCancel(context.WithoutCancel(client))
	stop := context.AfterFunc(client, func() {
		if stopCause(client) != nil || !u.keepReading() {
			u.cancel()
		}
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	u.detach = append(u.detach, stop)
}

// streamBegins notes that the answer streams.
func (u *upstreamContext) streamBegins() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams = true
}

// keepReading reports whether the gateway reads on although the client has left. If so, it starts the timer that ends the reading.
func (u *upstreamContext) keepReading() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.s.CountGrace <= 0 || !u.streams || u.ctx.Err() != nil {
		return false
	}
	if u.timer == nil {
		u.timer = time.AfterFunc(u.s.CountGrace, u.cancel)
		u.detach = append(u.detach, u.timer.Stop, context.AfterFunc(u.s.stopping, u.cancel))
		u.s.readOn.Add(1)
	}
	return true
}

// clientLeft reports whether the client has left and the gateway read on.
func (u *upstreamContext) clientLeft() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.timer != nil
}

func (u *upstreamContext) end() {
	if u.s.CountGrace <= 0 {
		return
	}
	u.cancel() // after this, nothing is added to detach
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, stop := range u.detach {
		stop()
	}
	if u.timer != nil {
		u.s.readOn.Add(-1)
	}
}

// extendedContext returns a context that ends the given time after its client's. It leaves time to read the usage from the rest of an
// answer that Ollama has already generated. A gateway that is stopping does not wait for it.
func extendedContext(client context.Context, by time.Duration) (context.Context, context.CancelFunc) {
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

// discardingWriter accepts and drops what the gateway reads after the client has left.
type discardingWriter struct{ http.ResponseWriter }

func (discardingWriter) Write(p []byte) (int, error) { return len(p), nil }

func (discardingWriter) FlushError() error { return nil }

// journalingWriter writes the number of pieces to the journal before they reach the client.
type journalingWriter struct {
	*exchange
	b *booking
	m *dialect.Meter
}

func (w *journalingWriter) Write(text []byte) (int, error) {
	if n := w.m.Tokens; n > w.b.ahead && w.b.x.route.purpose == inference {
		w.b.ahead = w.b.s.Books.Passed(w.b.record.ID, n)
	}
	return w.exchange.Write(text)
}
