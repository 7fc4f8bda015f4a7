package server

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

// largeBody is the size from which a body is read in turn. Reading a smaller one takes less than a millisecond.
const largeBody = 64 << 10

// turns shares the processors among payers for the reading of large bodies: decompressing and parsing. Without it, the bodies of one payer
// slow down those of all others. When a place becomes free, the payer with the least time so far is next, with its oldest body. So a payer
// waits for at most one body of each other one, and for those that are being read. The zero value is not usable: places must be set.
type turns struct {
	mu      sync.Mutex
	places  int
	inUse   int
	virtual time.Duration // the time of the payer that was next last
	order   uint64        // of the last body that had to wait
	payers  map[string]*turnQueue
}

// turnQueue is a payer that reads bodies or waits to.
type turnQueue struct {
	had     time.Duration // its time so far, at least that of the others when it came
	reading int
	waiting []turn
}

// turn is a body that waits for its turn.
type turn struct {
	order uint64
	comes chan struct{} // closed when it has a place
}

// places leaves half of the processors to everything else.
func places() int { return (runtime.GOMAXPROCS(0) + 1) / 2 }

// do runs read when it is the payer's turn, and returns its error, or that of ctx if that ends first.
func (t *turns) do(ctx context.Context, payer string, read func() error) error {
	q, comes := t.ask(payer)
	if comes != nil {
		select {
		case <-comes:
		case <-ctx.Done():
			if t.withdraw(payer, q, comes) {
				return ctx.Err()
			}
		}
	}
	began := time.Now()
	defer func() { t.end(payer, q, time.Since(began)) }()
	return read()
}

// ask takes a place, or returns a channel that is closed when the payer has one.
func (t *turns) ask(payer string) (*turnQueue, chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.payers[payer]
	if q == nil {
		if t.payers == nil {
			t.payers = make(map[string]*turnQueue)
		}
		q = &turnQueue{had: t.virtual}
		t.payers[payer] = q
	}
	if t.inUse < t.places {
		t.inUse++
		q.reading++
		return q, nil
	}
	t.order++
	own := turn{t.order, make(chan struct{})}
	q.waiting = append(q.waiting, own)
	return q, own.comes
}

// withdraw removes a body from the queue. It returns false if the body has a place already.
func (t *turns) withdraw(payer string, q *turnQueue, comes chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, w := range q.waiting {
		if w.comes == comes {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			t.forget(payer, q)
			return true
		}
	}
	return false
}

// end returns a place after took, and gives it to the next body.
func (t *turns) end(payer string, q *turnQueue, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q.had += took
	q.reading--
	t.inUse--
	t.forget(payer, q)
	var next *turnQueue
	for _, o := range t.payers {
		if len(o.waiting) > 0 && (next == nil || o.had < next.had || o.had == next.had && o.waiting[0].order < next.waiting[0].order) {
			next = o
		}
	}
	if next == nil {
		return
	}
	t.virtual = max(t.virtual, next.had)
	t.inUse++
	next.reading++
	close(next.waiting[0].comes)
	next.waiting = next.waiting[1:]
}

// inTurn runs read, for a large body only when its payer is next.
func (x *exchange) inTurn(large bool, read func() error) error {
	if !large {
		return read()
	}
	err := x.s.parsing.do(x.r.Context(), x.payer(), read)
	if err != nil && errors.Is(err, x.r.Context().Err()) {
		return api.Wrap(api.CodeClientGone, err, "the client went away")
	}
	return err
}

// forget drops a payer that has nothing left. One that returns soon begins at the time of the payer that is next.
func (t *turns) forget(payer string, q *turnQueue) {
	if q.reading == 0 && len(q.waiting) == 0 {
		delete(t.payers, payer)
	}
}
