package sched

import (
	"context"
	"time"
)

const (
	guessedLoad = 10 * time.Second // what a change is taken to cost before one was seen
	// stint is how many times the cost of a change a model is served for while it is wanted: then changes take at most a ninth of a
	// backend's time, also where a client alternates on purpose. (A change and the one back, with 16 parts of service before them.)
	stint    = 16
	mostKept = 5 * time.Second // for a client that left a load and may return
	// A client that has waited for less than this when it leaves does not try again soon: it was ended, or plays.
	earnest = time.Second
)

// changeLocked is the change of model that p should drain for, or nil. A change costs everybody, so
//   - an idle backend whose own models no request waits for changes for a lane that no other backend serves; it helps one out that
//     another serves where its memory is empty or unused, or the wait there is longer than two changes take;
//   - one whose memory has room loads besides what it has, at once;
//   - a busy one without room changes when it has had its models for a stint, and a request that waits for another is further behind
//     than all that wait for these, or has waited for that long;
//   - a payer whose change has taken a backend from others, or was left behind, causes none for a stint where others would notice: a
//     moment between two of their requests is no invitation.
func (s *Scheduler) changeLocked(p *place, now time.Time) *turn {
	own, ownRank := s.ownLocked(p, now)
	busy := own != nil || p.inFlight > 0
	var cold *lane
	var first *waiter
	var firstRank rank
	for _, l := range s.lanes {
		if p.warm(l.name) || !s.eligible(p, l.name) {
			continue
		}
		w, r := s.nextIn(l, p.b, now)
		if w != nil && now.Before(w.client.barred) && !p.room(l.name.model) &&
			(busy || now.Sub(p.use.besides(w.client)) < s.worth(p, l.name.model)) {
			barred := w.client
			if w, r = s.causeIn(l, p.b, now); w == nil {
				s.wakeLocked(p, barred.barred.Sub(now))
			}
		}
		if w != nil && before(w, r, first, firstRank) && s.wantsLocked(p, l, w, now) {
			cold, first, firstRank = l, w, r
		}
	}
	if cold == nil || now.Before(p.kept) && !p.room(cold.name.model) {
		return nil
	}
	if busy && !p.room(cold.name.model) {
		worth := s.worth(p, cold.name.model)
		switch waited := now.Sub(first.arrived); {
		case now.Sub(p.loaded) < worth,
			own == nil && waited < p.changing(cold.name.model), // it may run dry by itself
			own != nil && !before(first, firstRank, own, ownRank) && waited < worth:
			return nil
		}
	}
	return &turn{lane: cold.name, request: first, since: now, work: p.work, slots: p.capacity()}
}

// ownLocked is the request that goes next of those that p can serve as it is, or nil.
func (s *Scheduler) ownLocked(p *place, now time.Time) (*waiter, rank) {
	var own *waiter
	var first rank
	for _, l := range s.lanes {
		if !p.warm(l.name) || !s.eligible(p, l.name) {
			continue
		}
		if w, r := s.nextIn(l, p.b, now); w != nil && before(w, r, own, first) {
			own, first = w, r
		}
	}
	return own, first
}

// wantsLocked reports whether l needs p although others may have its model already.
func (s *Scheduler) wantsLocked(p *place, l *lane, w *waiter, now time.Time) bool {
	slots, mean := 0, s.holds.median
	for _, b := range s.fleet.Serving(l.name.model) {
		o := s.placeLocked(b)
		if o == p || b == w.ask.Avoid || tooOld(b, l.name.since) {
			continue
		}
		if o.turning != nil && o.turning.lane == l.name || o.load != nil && o.load.lane == l.name {
			return false // it is being loaded elsewhere: one at a time
		}
		if o.warm(l.name) {
			st := o.station(l.name.model)
			slots += o.limit(st)
			mean = st.usual(mean)
		}
	}
	// An idle backend whose memory is empty, or whose models were not asked for in a while, loses nothing.
	if slots == 0 || p.inFlight == 0 && (len(p.b.State().Loaded) == 0 || now.Sub(p.use.last) > p.changing(l.name.model)) {
		return true
	}
	return time.Duration(l.n)*mean/time.Duration(slots) > 2*p.changing(l.name.model)
}

// changing is how long a load of model is expected to take.
func (p *place) changing(model string) time.Duration {
	if st := p.stations[model]; st != nil && st.loading.median > 0 {
		return st.loading.median
	}
	if p.loading.median > 0 {
		return p.loading.median
	}
	return guessedLoad
}

// worth is how long p has to serve its models before it is worth a change to model: a stint of loads, and of the time in which half of
// the slots are idle because what runs has to end. It is never so long that a request which waits for it reaches MaxWait.
func (s *Scheduler) worth(p *place, model string) time.Duration {
	var drain time.Duration
	for _, st := range p.stations {
		if p.holds(st.model) {
			drain = max(drain, st.holds.median/2)
		}
	}
	return min(stint*(p.changing(model)+drain), s.o.MaxWait*3/4)
}

// capacity is how many requests p can serve at one time as it is.
func (p *place) capacity() int {
	slots := 1
	for _, st := range p.stations {
		if p.holds(st.model) || st.inFlight > 0 {
			slots = max(slots, p.limit(st))
		}
	}
	return slots
}

// oweLocked charges the cause of a change that it did not wait for by the time in which the slots of p were idle, and more. Neither
// leaving nor returning lowers its counter below that, and for a stint it causes no other change where that would disturb other payers.
func (s *Scheduler) oweLocked(p *place, t *turn, now time.Time, more time.Duration) {
	p.count(now, 0)
	c := t.request.client
	if idle := time.Duration(t.slots)*now.Sub(t.since) - (p.work - t.work) + more; idle > 0 {
		c.owed += float64(idle) / c.weight
		c.charge(0) // its place among those that wait
	}
	c.barred = now.Add(s.worth(p, t.lane.model))
}

// loadLocked begins the change that p is turning to. It is the scheduler's own, so that a client that leaves does not abort it: Ollama
// ends a load whose request has gone.
func (s *Scheduler) loadLocked(p *place, now time.Time) {
	t := p.turning
	p.turning = nil
	if l := s.lanes[t.lane]; l != nil {
		// Not the one that goes next, if it is barred: the other would not be barred by what it has caused.
		w, _ := s.causeIn(l, p.b, now)
		if w == nil {
			w, _ = s.nextIn(l, p.b, now)
		}
		if w == nil {
			return
		}
		t.request = w
	}
	w := t.request
	if s.o.Load == nil {
		p.done(t.lane, w.client, now, 0)
		return
	}
	p.count(now, 1) // the load has the backend
	room := p.room(t.lane.model)
	ctx, cancel := context.WithCancel(context.Background())
	change := &load{turn: *t, began: now, cancel: cancel, share: p.share, beside: room, stops: !room, before: make(map[string]string)}
	for model := range p.b.State().Loaded {
		change.before[model] = ""
		if st := p.stations[model]; st != nil {
			change.before[model] = st.options
		}
	}
	p.load = change
	// One that takes so long waits for room after all: what it waits for must be let end.
	late := time.AfterFunc(2*p.changing(t.lane.model), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		change.beside = false
	})
	go func() {
		err := s.o.Load(ctx, p.b, w.ask)
		cancel()
		late.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.loadedLocked(p, err)
	}()
}

// done notes that a lane's model is in the backend's memory, which may have pushed others out. took is 0 where that is not known.
func (p *place) done(name laneName, cause *client, now time.Time, took time.Duration) {
	for _, st := range p.stations {
		st.seen = time.Time{}
		st.known = st.known && p.holds(st.model)
	}
	st := p.station(name.model)
	st.seen, p.loaded = now, now
	st.options, st.known = name.options, true
	if took > 0 {
		st.loading.put(cause.payer, took, now)
		p.loading.mix(cause.payer, took, now)
	}
}

// learn takes from what a load has pushed out how many models fit. If a pushed-out model has requests in flight, Ollama loads it again for
// them, and then the other one again, without end. So no request starts until the running ones have ended.
func (p *place) learn(before map[string]string) {
	after := p.b.State().Loaded
	for model := range before {
		if _, ok := after[model]; !ok {
			p.fits = max(1, len(after))
			p.unsettled = p.inFlight > 1 // the load itself is one
			return
		}
	}
	if p.fits > 0 {
		p.fits = max(p.fits, len(after))
	}
}

// loadedLocked ends a change. The request that caused it goes first, and pays for it; where it failed too: the request itself learns
// why, in Ollama's own words.
func (s *Scheduler) loadedLocked(p *place, err error) {
	now := time.Now()
	change := p.load
	took := now.Sub(change.began)
	w := change.request
	cause := w.client
	restored := p.evicted[loadedAs{change.lane.model, change.lane.options}] && p.evictedBy != cause &&
		now.Sub(p.loaded) < s.worth(p, change.lane.model)
	if restored && p.took {
		cause = p.evictedBy
	}
	p.load, p.last = nil, foundLoad{change.began, now, cause}
	if err == nil {
		p.done(change.lane, w.client, now, took)
		p.learn(change.before)
	}
	if change.stops {
		s.disturbedLocked(p, change, err, restored, now)
	}
	p.count(now, -1)
	had := p.share - change.share + change.lent - change.booked
	if w.place == nil { // it has left
		cause.debt += had
		s.abandonedLocked(p, change, err, now)
		return
	}
	s.leaveLocked(w)
	l := s.grantLocked(p, w.client, w.ask, w.arrived, change.began, ReasonChange)
	l.share, l.Loading = p.share, took
	l.since, l.before = now, took // the load is one, however many slots it is for
	l.wide -= took
	if cause != w.client {
		l.spared = took
		cause.charge(took)
		cause.debt += had
	} else {
		l.takeOver(had)
	}
	s.handLocked(w, l, now)
	s.fillLocked(p, now)
}

// disturbedLocked notes a change that has stopped p for everybody. Its payer causes no other for a stint where others would notice, if
// others use p, or if it has failed; but not if it only brings back what another payer has pushed out. A load that has failed had its
// time too: the models that p has now stay for a stint.
func (s *Scheduler) disturbedLocked(p *place, change *load, err error, restored bool, now time.Time) {
	c, worth := change.request.client, s.worth(p, change.lane.model)
	if err != nil && change.request.place != nil {
		p.loaded = now
		s.oweLocked(p, &change.turn, now, 0)
		return
	}
	if restored {
		p.evicted, p.evictedBy = nil, nil
		return
	}
	others := p.use.besides(c)
	if p.took = !others.IsZero() && now.Sub(others) < worth; p.took {
		c.barred = now.Add(worth)
	}
	p.evicted, p.evictedBy = make(map[loadedAs]bool), c
	for model, options := range change.before {
		if !p.holds(model) || model == change.lane.model {
			p.evicted[loadedAs{model, options}] = true
		}
	}
}

// dropLocked ends a load that its client has left, and whose payer is the only one that waits for p, for another model: a person alone
// who has chosen the wrong one.
func (s *Scheduler) dropLocked(p *place) {
	if l := p.load; l != nil && l.stops && l.request.place == nil && l.request.lease == nil && s.lanes[l.lane] == nil &&
		p.want.payers[l.request.client] > 0 && p.want.only(l.request.client) {
		l.cancel()
	}
}

// abandonedLocked ends a change whose request has left. The payer owes it, unless another request of its own or of others uses it. For
// a moment the model is kept, because a client that has given up too early may try again: it would otherwise never have its model.
func (s *Scheduler) abandonedLocked(p *place, change *load, err error, now time.Time) {
	took := now.Sub(change.began)
	alone := p.want.payers[change.request.client] > 0 && p.want.only(change.request.client) // and wants another model now
	if !change.stops || s.lanes[change.lane] != nil || change.request.err != nil || alone {
		change.request.client.charge(took)
		s.fillLocked(p, now)
		return
	}
	var keep time.Duration
	if err == nil {
		keep = s.keepLocked(p, took, now)
	}
	s.oweLocked(p, &change.turn, now, took+time.Duration(change.slots)*keep)
	s.fillLocked(p, now)
}

// wakeLocked looks at p again after d: when a bar ends, nothing else may happen.
func (s *Scheduler) wakeLocked(p *place, d time.Duration) {
	at := time.Now().Add(d)
	if p.wake != nil && !at.Before(p.wakes) {
		return
	}
	if p.wake != nil {
		p.wake.Stop()
	}
	p.wakes = at
	p.wake = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.wake = nil
		s.fillLocked(p, time.Now())
	})
}

// keepLocked keeps what p has just loaded for a quarter of the time that it took, and returns that time.
func (s *Scheduler) keepLocked(p *place, took time.Duration, now time.Time) time.Duration {
	keep := min(took/4, mostKept)
	p.kept = now.Add(keep)
	s.wakeLocked(p, keep)
	return keep
}
