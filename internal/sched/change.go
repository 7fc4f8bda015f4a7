package sched

import (
	"context"
	"time"
)

const (
	guessedLoad = 10 * time.Second // what a change is taken to cost before one was seen
	stint       = 8                // changes that a model's time on a backend must be worth while it is wanted there
)

// changeLocked says for which lane p should change its model, if for any. A change costs everybody, so
//   - an idle backend whose own models nobody waits for changes for a lane that no other backend serves; it helps one out that
//     another serves where its memory is empty or unused, or the wait there is longer than two changes take;
//   - one whose memory has room loads beside what it has, at once;
//   - a busy one without changes when it has had its models for as long as eight changes take, and somebody who waits for another
//     is further behind than everybody who waits for these, or has waited for that long.
func (s *Scheduler) changeLocked(p *place, now time.Time) laneName {
	var own *waiter // whose turn it is of those that p could serve as it is
	var ownRank rank
	var cold *lane
	var first *waiter
	var firstRank rank
	for _, l := range s.lanes {
		if !s.eligible(p, l.name) {
			continue
		}
		w, r := s.nextIn(l, p.b, now)
		if w == nil {
			continue
		}
		if p.warm(l.name.model) {
			if before(w, r, own, ownRank) {
				own, ownRank = w, r
			}
			continue
		}
		if before(w, r, first, firstRank) && s.wantsLocked(p, l, w, now) {
			cold, first, firstRank = l, w, r
		}
	}
	if cold == nil {
		return laneName{}
	}
	if (own != nil || p.inFlight > 0) && !p.room() {
		worth := stint * p.changing(cold.name.model)
		if now.Sub(p.loaded) < worth {
			return laneName{}
		}
		if own == nil && now.Sub(first.arrived) < p.changing(cold.name.model) {
			return laneName{} // it may run dry by itself
		}
		if own != nil && !before(first, firstRank, own, ownRank) && now.Sub(first.arrived) < worth {
			return laneName{}
		}
	}
	return cold.name
}

// wantsLocked says whether l needs p although others may have its model already.
func (s *Scheduler) wantsLocked(p *place, l *lane, w *waiter, now time.Time) bool {
	slots, mean := 0, s.mean
	for _, b := range s.fleet.Serving(l.name.model) {
		o := s.placeLocked(b)
		if o == p || b == w.ask.Avoid || tooOld(b, l.name.since) {
			continue
		}
		if o.turning.model == l.name.model || o.load != nil && o.load.lane.model == l.name.model {
			return false // it is being loaded elsewhere: one at a time
		}
		if o.warm(l.name.model) {
			st := o.station(l.name.model)
			slots += o.limit(st)
			mean = st.usual(mean)
		}
	}
	// An idle backend whose memory is empty, or whose models nobody has asked for in a while, loses nothing.
	if slots == 0 || p.inFlight == 0 && (len(p.b.State().Loaded) == 0 || now.Sub(p.last) > p.changing(l.name.model)) {
		return true
	}
	return time.Duration(l.n)*mean/time.Duration(slots) > 2*p.changing(l.name.model)
}

// changing is what a change to model is expected to take.
func (p *place) changing(model string) time.Duration {
	if st := p.stations[model]; st != nil && st.loading > 0 {
		return st.loading
	}
	if p.loading > 0 {
		return p.loading
	}
	return guessedLoad
}

// loadLocked begins the change that p is turning to. It is the scheduler's own, so that a client who leaves does not abort what
// others wait for: Ollama ends a load whose request has gone.
func (s *Scheduler) loadLocked(p *place, now time.Time) {
	l := s.lanes[p.turning]
	name := p.turning
	p.turning = laneName{}
	if l == nil {
		return
	}
	w, _ := s.nextIn(l, p.b, now)
	if w == nil {
		return
	}
	if s.o.Load == nil {
		p.done(name.model, now, 0)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.count(now, 1) // the load has the backend
	change := &load{lane: name, cause: w, began: now, share: p.share, cancel: cancel, beside: p.room(), before: make(map[string]bool)}
	for model := range p.b.State().Loaded {
		change.before[model] = true
	}
	p.load = change
	// One that takes so long waits for room after all: what it waits for must be let end.
	late := time.AfterFunc(2*p.changing(name.model), func() {
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

// done notes that model is in the backend's memory, which may have pushed others out.
func (p *place) done(model string, now time.Time, took time.Duration) {
	for _, st := range p.stations {
		st.seen = time.Time{}
	}
	st := p.station(model)
	st.seen, p.loaded = now, now
	if took > 0 {
		st.loading = took
		average(&p.loading, took)
	}
}

// learn takes from what a load has pushed out how many models fit.
func (p *place) learn(before map[string]bool) {
	after := p.b.State().Loaded
	for model := range before {
		if _, ok := after[model]; !ok {
			p.fits = max(1, len(after))
			return
		}
	}
	if p.fits > 0 {
		p.fits = max(p.fits, len(after))
	}
}

// loadedLocked ends a change. Who caused it goes first, and pays for it; where it failed too: the request itself learns why, in
// Ollama's own words.
func (s *Scheduler) loadedLocked(p *place, err error) {
	now := time.Now()
	change := p.load
	p.load = nil
	took := now.Sub(change.began)
	if err == nil {
		p.done(change.lane.model, now, took)
		p.learn(change.before)
	}
	p.count(now, -1)
	w := change.cause
	if w.place == nil { // it has left
		w.client.charge(took)
		s.fillLocked(p, now)
		return
	}
	s.leaveLocked(w)
	l := s.grantLocked(p, w.client, w.ask, w.arrived, change.began, ReasonChange)
	l.share, l.Loading = change.share, took
	s.handLocked(w, l, now)
	s.fillLocked(p, now)
}
