package sched

import (
	"context"
	"time"
)

const (
	defaultLoad = 10 * time.Second // the assumed time of a change before one was measured
	// stint is for how many times the cost of a change a model is served while it is wanted. So changes take at most a ninth of a backend's
	// time, even if a client alternates on purpose: one change and the one back for 16 parts of service.
	stint   = 16
	maxKept = 5 * time.Second // how long a model is kept, at most, for a client that left a load and may return
	// A client that leaves after less than this is not expected to try again soon: it was ended, or it plays.
	shortWait = time.Second
)

// changeLocked is the change of model that srv should drain for, or nil. A change costs all payers time, so these rules hold:
//   - An idle backend, for whose models no request waits, changes for a queue that no other backend serves. If another backend serves
//     the queue, it changes only if its memory is empty or unused, or if the wait there is longer than two changes.
//   - A backend whose memory has room loads one more model at once.
//   - A busy backend without room changes after it has served its models for a stint, if a request that waits for another model has had
//     less service than all that wait for these models, or has waited for a stint itself.
//   - A payer whose change took a backend from others, or that left its change, causes no other change for a stint if others would
//     notice. A short pause between two requests of others does not end this.
func (s *Scheduler) changeLocked(srv *serverState, now time.Time) *drain {
	own, ownRank := s.ownLocked(srv, now)
	busy := own != nil || srv.inFlight > 0
	var cold *modelQueue
	var first *waiter
	var firstRank rank
	for _, q := range s.queues {
		if srv.warm(q.name) || !s.eligible(srv, q.name) {
			continue
		}
		w, r := s.nextIn(q, srv.b, now)
		if w != nil && now.Before(w.payer.barredUntil) && !srv.room(q.name.model) &&
			(busy || now.Sub(srv.use.lastByOthers(w.payer)) < s.worth(srv, q.name.model)) {
			barred := w.payer
			if w, r = s.causeIn(q, srv.b, now); w == nil {
				s.wakeLocked(srv, barred.barredUntil.Sub(now))
			}
		}
		if w != nil && precedes(w, r, first, firstRank) && s.wantsLocked(srv, q, w, now) {
			cold, first, firstRank = q, w, r
		}
	}
	if cold == nil || now.Before(srv.keptUntil) && !srv.room(cold.name.model) {
		return nil
	}
	if busy && !srv.room(cold.name.model) {
		worth := s.worth(srv, cold.name.model)
		switch waited := now.Sub(first.arrived); {
		case now.Sub(srv.loaded) < worth,
			own == nil && waited < srv.changing(cold.name.model), // it may soon be idle anyway
			own != nil && !precedes(first, firstRank, own, ownRank) && waited < worth:
			return nil
		}
	}
	return &drain{queue: cold.name, request: first, since: now, work: srv.work, slots: srv.capacity()}
}

// ownLocked is the next request that srv can serve with the models that it has, or nil.
func (s *Scheduler) ownLocked(srv *serverState, now time.Time) (*waiter, rank) {
	var own *waiter
	var first rank
	for _, q := range s.queues {
		if !srv.warm(q.name) || !s.eligible(srv, q.name) {
			continue
		}
		if w, r := s.nextIn(q, srv.b, now); w != nil && precedes(w, r, own, first) {
			own, first = w, r
		}
	}
	return own, first
}

// wantsLocked reports whether q needs srv even if other backends have its model already.
func (s *Scheduler) wantsLocked(srv *serverState, q *modelQueue, w *waiter, now time.Time) bool {
	slots, mean := 0, s.holds.median
	for _, b := range s.fleet.Serving(q.name.model) {
		o := s.serverLocked(b)
		if o == srv || b == w.ask.Avoid || tooOld(b, q.name.since) {
			continue
		}
		if o.draining != nil && o.draining.queue == q.name || o.load != nil && o.load.queue == q.name {
			return false // another backend loads it: one load at a time
		}
		if o.warm(q.name) {
			st := o.model(q.name.model)
			slots += o.limit(st)
			mean = st.usual(mean)
		}
	}
	// An idle backend loses nothing if its memory is empty or its models were not used for a while.
	if slots == 0 || srv.inFlight == 0 && (len(srv.b.State().Loaded) == 0 || now.Sub(srv.use.last) > srv.changing(q.name.model)) {
		return true
	}
	return time.Duration(q.n)*mean/time.Duration(slots) > 2*srv.changing(q.name.model)
}

// changing is how long a load of model is expected to take.
func (srv *serverState) changing(model string) time.Duration {
	if st := srv.models[model]; st != nil && st.loading.median > 0 {
		return st.loading.median
	}
	if srv.loading.median > 0 {
		return srv.loading.median
	}
	return defaultLoad
}

// worth is how long srv has to serve its models before a change to model pays: a stint, measured in the time for the load and for the
// drain, in which on average half of the slots are idle. It is short enough that a request which waits for the change does not reach
// MaxWait.
func (s *Scheduler) worth(srv *serverState, model string) time.Duration {
	var drainTime time.Duration
	for _, st := range srv.models {
		if srv.holds(st.model) {
			drainTime = max(drainTime, st.holds.median/2)
		}
	}
	return min(stint*(srv.changing(model)+drainTime), s.o.MaxWait*3/4)
}

// capacity is the number of requests that srv can serve at one time with the models that it has.
func (srv *serverState) capacity() int {
	slots := 1
	for _, st := range srv.models {
		if srv.holds(st.model) || st.inFlight > 0 {
			slots = max(slots, srv.limit(st))
		}
	}
	return slots
}

// oweLocked charges the payer of a change that it left: the time in which the slots of srv were idle, and more. Neither leaving nor
// returning lowers the payer's counter below that. For a stint the payer may not cause another change that would disturb others.
func (s *Scheduler) oweLocked(srv *serverState, t *drain, now time.Time, more time.Duration) {
	srv.count(now, 0)
	c := t.request.payer
	if idle := time.Duration(t.slots)*now.Sub(t.since) - (srv.work - t.work) + more; idle > 0 {
		c.owed += float64(idle) / c.weight
		c.charge(0) // updates its place in the heaps
	}
	c.barredUntil = now.Add(s.worth(srv, t.queue.model))
}

// loadLocked begins the load that srv has drained for. The scheduler itself sends it: Ollama aborts a load when the connection of its
// request closes, and a client that leaves must not abort it.
func (s *Scheduler) loadLocked(srv *serverState, now time.Time) {
	t := srv.draining
	srv.draining = nil
	if q := s.queues[t.queue]; q != nil {
		// If the next request's payer is barred, another request counts as the cause. Otherwise its payer would not be barred for it.
		w, _ := s.causeIn(q, srv.b, now)
		if w == nil {
			w, _ = s.nextIn(q, srv.b, now)
		}
		if w == nil {
			return
		}
		t.request = w
	}
	w := t.request
	if s.o.Load == nil {
		srv.done(t.queue, w.payer, now, 0)
		return
	}
	srv.count(now, 1) // the load uses the backend
	room := srv.room(t.queue.model)
	ctx, cancel := context.WithCancel(context.Background())
	change := &modelLoad{
		drain: *t, began: now, cancel: cancel, share: srv.share, keepsServing: room, stops: !room, before: make(map[string]string),
	}
	for model := range srv.b.State().Loaded {
		change.before[model] = ""
		if st := srv.models[model]; st != nil {
			change.before[model] = st.options
		}
	}
	srv.load = change
	// A load that takes this long waits for room after all. No new request may start, so that those that it waits for can end.
	late := time.AfterFunc(2*srv.changing(t.queue.model), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		change.keepsServing = false
	})
	go func() {
		err := s.o.Load(ctx, srv.b, w.ask)
		cancel()
		late.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.loadedLocked(srv, err)
	}()
}

// done notes that the model of name is in the backend's memory, which may have pushed others out. took is 0 if it is not known.
func (srv *serverState) done(name queueName, cause *payerState, now time.Time, took time.Duration) {
	for _, st := range srv.models {
		st.seen = time.Time{}
		st.known = st.known && srv.holds(st.model)
	}
	st := srv.model(name.model)
	st.seen, srv.loaded = now, now
	st.options, st.known = name.options, true
	if took > 0 {
		st.loading.put(cause.name, took, now)
		srv.loading.mix(cause.name, took, now)
	}
}

// learn finds from what a load has pushed out how many models fit. If a pushed-out model has requests in flight, Ollama loads it again for
// them, and then the other one again, without end. So no request starts until the running ones have ended.
func (srv *serverState) learn(before map[string]string) {
	after := srv.b.State().Loaded
	for model := range before {
		if _, ok := after[model]; !ok {
			srv.fits = max(1, len(after))
			srv.unsettled = srv.inFlight > 1 // the load itself is one
			return
		}
	}
	if srv.fits > 0 {
		srv.fits = max(srv.fits, len(after))
	}
}

// loadedLocked ends a load. The request that caused it goes first, and pays for it. It is sent even if the load failed, so that the client
// gets Ollama's own error.
func (s *Scheduler) loadedLocked(srv *serverState, err error) {
	now := time.Now()
	change := srv.load
	took := now.Sub(change.began)
	w := change.request
	cause := w.payer
	restored := srv.evicted[loadedAs{change.queue.model, change.queue.options}] && srv.evictedBy != cause &&
		now.Sub(srv.loaded) < s.worth(srv, change.queue.model)
	if restored && srv.tookOver {
		cause = srv.evictedBy
	}
	srv.load, srv.lastLoad = nil, pastLoad{change.began, now, cause}
	if err == nil {
		srv.done(change.queue, w.payer, now, took)
		srv.learn(change.before)
	}
	if change.stops {
		s.noteStopLocked(srv, change, err, restored, now)
	}
	srv.count(now, -1)
	had := srv.share - change.share + change.lent - change.booked
	if w.element == nil { // it has left
		cause.debt += had
		s.abandonedLocked(srv, change, err, now)
		return
	}
	s.leaveLocked(w)
	l := s.grantLocked(srv, w.payer, w.ask, w.arrived, change.began, ReasonChange)
	l.share, l.Loading = srv.share, took
	l.since, l.before = now, took // the load counts once, for any number of slots
	l.modelWork -= took
	if cause != w.payer {
		l.restoring = took
		cause.charge(took)
		cause.debt += had
	} else {
		l.takeOver(had)
	}
	s.deliverLocked(w, l, now)
	s.dispatchLocked(srv, now)
}

// noteStopLocked notes a load that has stopped srv for all requests. If others use srv, or if the load failed, its payer may not cause
// another change that others would notice for a stint. This does not hold if the load only restores what another payer pushed out. After a
// failed load the models that srv has stay for a stint too, because it took time as well.
func (s *Scheduler) noteStopLocked(srv *serverState, change *modelLoad, err error, restored bool, now time.Time) {
	c, worth := change.request.payer, s.worth(srv, change.queue.model)
	if err != nil && change.request.element != nil {
		srv.loaded = now
		s.oweLocked(srv, &change.drain, now, 0)
		return
	}
	if restored {
		srv.evicted, srv.evictedBy = nil, nil
		return
	}
	others := srv.use.lastByOthers(c)
	if srv.tookOver = !others.IsZero() && now.Sub(others) < worth; srv.tookOver {
		c.barredUntil = now.Add(worth)
	}
	srv.evicted, srv.evictedBy = make(map[loadedAs]bool), c
	for model, options := range change.before {
		if !srv.holds(model) || model == change.queue.model {
			srv.evicted[loadedAs{model, options}] = true
		}
	}
}

// cancelLoadLocked cancels a load that its client has left, if the client's payer is the only one that waits for srv, and for another
// model: a single user has chosen the wrong model.
func (s *Scheduler) cancelLoadLocked(srv *serverState) {
	if l := srv.load; l != nil && l.stops && l.request.element == nil && l.request.lease == nil && s.queues[l.queue] == nil &&
		srv.demand.payers[l.request.payer] > 0 && srv.demand.only(l.request.payer) {
		l.cancel()
	}
}

// abandonedLocked ends a load whose request has left. The payer owes it, unless another request uses the model. The model is kept for a
// moment, because a client that gave up too early may try again, and would otherwise never get its model.
func (s *Scheduler) abandonedLocked(srv *serverState, change *modelLoad, err error, now time.Time) {
	took := now.Sub(change.began)
	alone := srv.demand.payers[change.request.payer] > 0 && srv.demand.only(change.request.payer) // and it wants another model now
	if !change.stops || s.queues[change.queue] != nil || change.request.err != nil || alone {
		change.request.payer.charge(took)
		s.dispatchLocked(srv, now)
		return
	}
	var keep time.Duration
	if err == nil {
		keep = s.keepLocked(srv, took, now)
	}
	s.oweLocked(srv, &change.drain, now, took+time.Duration(change.slots)*keep)
	s.dispatchLocked(srv, now)
}

// wakeLocked calls dispatchLocked after d, because no other event may happen when a bar ends.
func (s *Scheduler) wakeLocked(srv *serverState, d time.Duration) {
	at := time.Now().Add(d)
	if srv.wake != nil && !at.Before(srv.wakeAt) {
		return
	}
	if srv.wake != nil {
		srv.wake.Stop()
	}
	srv.wakeAt = at
	srv.wake = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		srv.wake = nil
		s.dispatchLocked(srv, time.Now())
	})
}

// keepLocked keeps the model that srv has just loaded for a quarter of the time that the load took, and returns how long.
func (s *Scheduler) keepLocked(srv *serverState, took time.Duration, now time.Time) time.Duration {
	keep := min(took/4, maxKept)
	srv.keptUntil = now.Add(keep)
	s.wakeLocked(srv, keep)
	return keep
}
