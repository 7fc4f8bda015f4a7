// Package sched decides which request runs next and on which backend. It takes both decisions in one step, under one lock.
//
// Ollama queues requests for a loaded model without a bound, without an order among its users, and does not report it
// (docs/ollama-contract, section 3). So the gateway never has more requests in flight there than Ollama has slots, and the other
// requests wait here. The order is that of the Virtual Token Counter of Sheng et al. (OSDI'24, arXiv 2401.00588), with the time for
// which slots are held as the service. docs/fairness.md has the rules, their bounds and the measurements.
package sched

import (
	"context"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
)

// Options are the bounds of the queue, and the function that loads a model.
type Options struct {
	MaxQueue int           // requests that may wait in all
	PerKey   int           // of one payer; 0: only its share bounds it
	MaxWait  time.Duration // of one request
	// Prefix sends conversations with the same beginning to the same backend, where its slots allow it.
	Prefix bool
	// Load brings a request's model into a backend's memory. It returns when the model is there and the backend's state shows it. Its
	// context is the scheduler's: it ends early only if the payer has left the load and is the only one that waits, for another model.
	// nil: requests load what they need themselves.
	Load func(ctx context.Context, b *backend.Backend, a *Ask) error
}

// Ask is what a request needs.
type Ask struct {
	ID       string           // of the request
	Key      string           // preview, for lists
	Payer    string           // the request uses this payer's share of slots, loads and the queue; "": Key
	Weight   float64          // of the payer; 0 is 1
	Batch    bool             // it runs when no interactive request waits
	Model    string           // canonical name
	Since    string           // the oldest version that can serve it; "" any
	Avoid    *backend.Backend // a backend that has just failed with it: the request was already scheduled once, so it goes first
	Options  []byte           // load-time options, a JSON object for Load; nil: none
	Plain    bool             // Ollama has nothing to prepare for it: no schema, image, tool or long prompt
	Embeds   bool             // it asks for embeddings
	Texts    int              // the number of texts to embed; Ollama runs each in a slot of its own
	Prefix   uint64           // of the conversation's beginning; 0: none
	Deadline time.Time        // zero: only MaxWait bounds the wait
}

// Scheduler grants the slots of a fleet, per model.
type Scheduler struct {
	o     Options
	fleet *backend.Fleet

	mu       sync.Mutex
	servers  map[*backend.Backend]*serverState
	queues   map[queueName]*modelQueue // the queues that are not empty
	payers   map[string]*payerState
	waiting  int
	arrivals uint64
	running  []*Lease
	advanced time.Time              // when running requests were last charged
	holds    samples[time.Duration] // how long a slot is held
	virtual  float64                // the counter of the payer that was scheduled last
	swept    int                    // the number of payers that the last sweep left
}

// New returns a scheduler for fleet.
func New(fleet *backend.Fleet, o Options) *Scheduler {
	if o.PerKey <= 0 {
		o.PerKey = o.MaxQueue
	}
	s := &Scheduler{
		o: o, fleet: fleet,
		servers: make(map[*backend.Backend]*serverState), queues: make(map[queueName]*modelQueue), payers: make(map[string]*payerState),
	}
	fleet.OnChange(s.changed)
	return s
}

// Acquire waits for a slot for a, at most until its deadline. Its errors are CodeQueueFull and CodeQueueTimeout, with the time after which
// a new try makes sense; CodeNoBackend if no server that has the model answers; CodeNotFound if no server has it; CodeTooOld if all
// servers that have it are too old; and CodeClientGone if ctx ends first. With CodeClientGone and CodeQueueTimeout, Acquire also returns a
// lease without a slot if the model was being loaded for the request, because that load has a cost.
func (s *Scheduler) Acquire(ctx context.Context, a Ask) (*Lease, error) {
	now := time.Now()
	s.mu.Lock()
	l, w, err := s.askLocked(&a, now)
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case w == nil:
		return l, nil
	}
	if err := s.wait(ctx, w); err != nil {
		return w.left, err
	}
	return w.lease, nil
}

// askLocked returns a lease, or a waiter in the queue if no slot is free.
func (s *Scheduler) askLocked(a *Ask, now time.Time) (*Lease, *waiter, *api.Error) {
	serving, err := s.servingLocked(a)
	if err != nil {
		return nil, nil, err
	}
	c := s.payerLocked(a)
	if s.waiting == 0 {
		if srv, why := s.chooseLocked(serving, a); srv != nil {
			c.lift(s.virtual)
			return s.grantLocked(srv, c, a, now, now, why), nil, nil
		}
	}
	// A request that failed elsewhere was admitted before: requests that arrived later do not make it fail.
	if a.Avoid == nil && (c.waiting >= s.o.PerKey || c.waiting >= s.o.MaxQueue-s.waiting) {
		if srv, why := s.chooseLocked(serving, a); srv != nil { // a slot that no other request wants
			c.lift(s.lowestLocked())
			return s.grantLocked(srv, c, a, now, now, why), nil, nil
		}
		if c.waiting >= s.o.PerKey || !s.evictBatchLocked(c, a) {
			return nil, nil, s.fullLocked(a)
		}
	}
	w := s.enqueueLocked(c, a, now)
	for _, srv := range s.byRoomLocked(serving) {
		s.dispatchLocked(srv, now)
		if w.lease != nil {
			return w.lease, nil, nil
		}
	}
	return nil, w, nil
}

// servingLocked returns the servers that may serve a, without a.Avoid.
func (s *Scheduler) servingLocked(a *Ask) ([]*backend.Backend, *api.Error) {
	all := s.fleet.Serving(a.Model)
	list := all
	if a.Since != "" || a.Avoid != nil {
		list = nil
		for _, b := range all {
			if b != a.Avoid && !tooOld(b, a.Since) {
				list = append(list, b)
			}
		}
	}
	switch {
	case len(list) > 0:
		return list, nil
	case a.Avoid != nil:
		return nil, api.Errorf(api.CodeNoBackend, "the Ollama server failed and there is no other for this model: try again soon")
	case len(all) > 0:
		return nil, api.Errorf(api.CodeTooOld, "no Ollama server with this model is of version %s or newer, which this route needs: "+
			"ask the operator for an upgrade", a.Since)
	case s.fleet.Healthy() > 0 && !s.fleet.Has(a.Model):
		return nil, api.Errorf(api.CodeNotFound, "model '%s' not found", a.Model)
	}
	return nil, s.fleet.Unreachable()
}

func tooOld(b *backend.Backend, since string) bool { return since != "" && b.State().Older(since) }

func (s *Scheduler) fullLocked(a *Ask) *api.Error {
	message := "all slots are busy and the queue is full: try again later"
	if s.waiting < s.o.MaxQueue {
		message = "all slots are busy and this key has its share of the queue already: try again later"
	}
	return s.withRetryAfterLocked(api.Errorf(api.CodeQueueFull, "%s", message), a.Model)
}

// evictBatchLocked makes room for a: it refuses the newest batch request of the payer that has the most requests waiting, and reports
// whether there was one. A payer may have at most as many requests waiting as the queue has free places, so that there is room for others
// (the dynamic threshold of Choudhury and Hahne, 1998, with alpha 1). evictBatchLocked serves a payer that has less than an equal part of
// the queue when many other payers have filled it.
func (s *Scheduler) evictBatchLocked(own *payerState, a *Ask) bool {
	waiting := own.waiting + 1
	least := waiting
	if a.Batch {
		least++ // otherwise it would only take the place of an equal one
	}
	var last *waiter
	payers := 1
	for _, c := range s.payers {
		if c.waiting > 0 {
			payers++
		}
		if c == own || c.waiting < least || last != nil && c.waiting <= last.payer.waiting {
			continue
		}
		if newest := c.newestBatch(); newest != nil {
			last = newest
		}
	}
	if last == nil || waiting > max(1, s.o.MaxQueue/payers) {
		return false
	}
	s.leaveLocked(last)
	full := api.Errorf(api.CodeQueueFull,
		"the queue is full and a key with fewer requests needs the place of this batch request: try again later")
	last.err = s.withRetryAfterLocked(full, last.ask.Model)
	close(last.ready)
	s.stopDrainsLocked(last.queue, time.Now())
	return true
}

// withRetryAfterLocked sets in err when one more request for model may get a slot.
func (s *Scheduler) withRetryAfterLocked(err *api.Error, model string) *api.Error {
	err.RetryAfter = s.expectedLocked(model, s.waitingForLocked(model)+1)
	err.NoRetry = err.RetryAfter > 30*time.Second
	return err
}

// wait returns when w has its lease. If the wait ends without one, it removes w from the queue and returns the reason.
func (s *Scheduler) wait(ctx context.Context, w *waiter) error {
	wait := s.o.MaxWait
	if !w.ask.Deadline.IsZero() {
		wait = max(0, min(wait, w.ask.Deadline.Sub(w.arrived)))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err *api.Error
	select {
	case <-w.ready:
		if w.err != nil {
			return w.err
		}
		return nil
	case <-ctx.Done():
		err = api.Wrap(api.CodeClientGone, ctx.Err(), "the client went away")
	case <-timer.C:
		err = api.Errorf(api.CodeQueueTimeout, "no slot became free within %s: try again later", wait.Round(time.Second))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A grant may have crossed with the end of the wait. Then w has a slot, and returns it.
	switch {
	case w.lease != nil:
		if srv, now := w.lease.server, time.Now(); now.Equal(srv.loaded) || now.Sub(srv.loaded) < maxKept && w.lease.Why == ReasonChange {
			s.keepLocked(srv, srv.changing(w.ask.Model), now)
		}
		w.lease.releaseLocked(time.Now(), false)
		if w.lease.Why == ReasonChange {
			w.left = w.lease
		}
	case w.err == nil:
		w.left = s.loadingForLocked(w, time.Now())
		s.leaveLocked(w)
		if now := time.Now(); now.Sub(w.arrived) < shortWait {
			s.stopDrainsLocked(w.queue, now)
		}
	}
	if err.Code == api.CodeQueueTimeout {
		return s.withRetryAfterLocked(err, w.ask.Model)
	}
	return err
}

// loadingForLocked returns a lease without a slot if a model is being loaded for w, and otherwise nil. The load continues without w: the
// backend's time that it takes from now on is booked with the next request of the payer.
func (s *Scheduler) loadingForLocked(w *waiter, now time.Time) *Lease {
	for _, srv := range s.servers {
		if srv.load != nil && srv.load.request == w {
			srv.count(now, 0)
			took := now.Sub(srv.load.began)
			srv.load.booked = srv.share - srv.load.share
			return &Lease{
				Backend: srv.b, Waited: srv.load.began.Sub(w.arrived), Loading: took, Why: ReasonChange, Ahead: w.ahead,
				released: true, held: took, charged: took, used: srv.load.booked + w.payer.takeDebt(),
			}
		}
	}
	return nil
}

// stopDrainsLocked stops the drains for a queue that is now empty: these backends continue with the models that they have. The payer that
// caused a drain owes the time for which slots were idle. A load that has begun continues. So does a drain whose client has waited for a
// while. Otherwise a client that asks and leaves early would cost others two loads each time, and a client that gives up too early and
// tries again would never get its model.
func (s *Scheduler) stopDrainsLocked(q *modelQueue, now time.Time) {
	if q.n > 0 {
		return
	}
	for _, srv := range s.servers {
		if t := srv.draining; t != nil && t.queue == q.name {
			srv.draining = nil
			if t.request.err == nil { // the client left
				s.oweLocked(srv, t, now, 0)
			}
			s.dispatchLocked(srv, now)
		}
	}
}

// changed reacts to a change of the fleet: requests that no server can serve any more get their error at once, and new slots are granted.
func (s *Scheduler) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, q := range s.queues {
		for w := range q.all() {
			if _, err := s.servingLocked(w.ask); err != nil {
				s.leaveLocked(w)
				w.err = err
				close(w.ready)
			}
		}
	}
	there := make(map[*backend.Backend]bool)
	for _, b := range s.fleet.All() {
		there[b] = true
		if s.waiting > 0 {
			s.dispatchLocked(s.serverLocked(b), now)
		}
	}
	for b, srv := range s.servers {
		if !there[b] && srv.inFlight == 0 && srv.load == nil {
			delete(s.servers, b)
		}
	}
}
