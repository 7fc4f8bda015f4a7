package server

import (
	"context"
	"sync"
	"time"

	"ollama-api-service/internal/proxy"
)

// leaveTime bounds how long the gateway reads on after the client of an inference has left, before it closes the connection to Ollama.
// It does not close it at once. Ollama (0.6.5) evaluates a prompt to its end in any case, and its slot is in use until then, so the
// gateway waits for the first record; if the answer does not stream, it waits for as long as the prompt is expected to take. And a
// connection that closes while Ollama writes can cost it a slot for good (docs/ollama-contract.md, section 3), so the gateway waits
// for a moment of silence between two records.
const leaveTime = time.Second

// upstreamContext is the context of a request to Ollama. For changes of models, it is the context of the client. For inference it ends
// after the client's: in the next silence of the stream, or leaveTime later. If COUNT_GRACE is set and the answer has begun, it ends
// COUNT_GRACE later, because the rest of the stream reports how many tokens were used. A gateway that is stopping does not wait for
// it.
type upstreamContext struct {
	ctx    context.Context
	cancel context.CancelFunc // nil if ctx is the client's
	s      *Server
	detach [3]func() bool
	n      int // the number of detach that is set

	mu      sync.Mutex
	streams bool
	grace   bool        // the client has left, and the gateway reads on for COUNT_GRACE
	timer   *time.Timer // set when the client has left
}

// open begins the context. leaving returns for how long, at most, it continues after the client has left; nil: not at all.
func (u *upstreamContext) open(client context.Context, server *Server, leaving func() time.Duration) {
	if u.ctx, u.s = client, server; server.CountGrace <= 0 && leaving == nil || client.Err() != nil {
		return
	}
	u.ctx, u.cancel = context.WithCancel(context.WithoutCancel(client))
	stop := context.AfterFunc(client, func() {
		if stopCause(client) != nil || !u.keepReading() && (leaving == nil || !u.linger(leaving)) {
			u.cancel()
		}
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	u.detachLocked(stop)
}

func (u *upstreamContext) detachLocked(stop func() bool) {
	u.detach[u.n] = stop
	u.n++
}

// streamBegins notes that the answer streams.
func (u *upstreamContext) streamBegins() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.streams = true
}

// linger ends the context after the given time, or if the answer has begun after a silence. It reports whether that is any time.
func (u *upstreamContext) linger(leaving func() time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := proxy.LeaveGap
	if !u.streams {
		d = leaving()
	}
	return d > 0 && u.waitLocked(d)
}

// waitAtMost ends the context after d: a record has come in what would have been a silence.
func (u *upstreamContext) waitAtMost(d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.waitLocked(d)
}

// keepReading reports whether the gateway reads on although the client has left. If so, it starts the timer that ends the reading.
func (u *upstreamContext) keepReading() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.s.CountGrace <= 0 || !u.streams || u.ctx.Err() != nil {
		return false
	}
	if !u.grace && u.waitLocked(u.s.CountGrace) {
		u.grace = true
		u.s.readOn.Add(1)
	}
	return u.grace
}

// waitLocked ends the context after d, and reports whether it has not ended yet.
func (u *upstreamContext) waitLocked(d time.Duration) bool {
	switch {
	case u.ctx.Err() != nil:
		return false
	case u.timer != nil:
		return u.timer.Stop() && !u.timer.Reset(d)
	}
	u.timer = time.AfterFunc(d, u.cancel)
	u.detachLocked(u.timer.Stop)
	u.detachLocked(context.AfterFunc(u.s.stopping, u.cancel))
	return true
}

// clientLeft reports whether the client has left and the gateway read on for the count.
func (u *upstreamContext) clientLeft() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.grace
}

func (u *upstreamContext) end() {
	if u.cancel == nil {
		return
	}
	u.cancel() // after this, nothing is added to detach
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, stop := range u.detach[:u.n] {
		stop()
	}
	if u.grace {
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

// discard drops what the gateway reads after the client has left.
func discard(p []byte) (int, error) { return len(p), nil }

// pass sends a piece of a stream to the client. It writes the number of pieces to the journal before they reach the client. It fails as
// soon as the client has left: a write to a connection that has just closed succeeds.
func (b *booking) pass(p []byte) (int, error) {
	if err := b.x.r.Context().Err(); err != nil {
		return 0, err
	}
	if n := b.x.meter.Tokens; n > b.ahead && b.x.route.purpose == inference {
		b.ahead = b.s.Books.Passed(b.record.ID, n)
	}
	return b.x.sendPiece(p)
}
