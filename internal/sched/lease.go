package sched

import (
	"cmp"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/backend"
)

// Lease is a slot in use. The caller must release it. The zero Lease has no slot, for requests that need none.
type Lease struct {
	Backend *backend.Backend
	// Waited is how long the request was in the queue, without the time of a load that it caused.
	Waited time.Duration
	// Loading is how long the load took that the request caused.
	Loading time.Duration
	// Why is the reason for the choice of the backend. Ahead is the number of requests that waited for the model when this one arrived.
	Why   Reason
	Ahead int

	sched       *Scheduler
	server      *serverState
	model       *modelState
	payer       *payerState
	taken       time.Time
	slots       int           // the number of slots that it has
	maxSlots    int           // the number of slots that it takes as they become free
	since       time.Time     // when slots last changed
	before      time.Duration // slot time until since
	embeds      bool          // Ask.Embeds
	texts       int           // Ask.Texts
	atBound     bool          // it took the last slot
	plain       bool          // Ask.Plain
	inside      time.Duration // how long it waited inside Ollama; negative: not known
	counted     counted
	prompt      Prompt        // an estimate, if Ollama has not counted the prompt
	read        time.Duration // how long Ollama evaluated the prompt, by its own record; 0: not known
	modelWork   time.Duration // the work of the model's slots when the lease was taken
	delays      time.Duration // slot time of others that the evaluation of its prompt stopped
	slowed      time.Duration // its own slot time that prompts of others stopped
	hasLoadTime bool          // Ollama's record has the time in which the model became ready: loadTime
	loadTime    time.Duration // see hasLoadTime
	began       atomic.Int64  // nanoseconds from taken to the first byte of a stream; 0: none yet
	queued      bool          // other requests ran with the model when it was taken
	lent        time.Duration // the server's time that others had while they waited for a load that this request caused
	othersLoad  time.Duration // how long it waited for a load of another request, as far as that is known before its release
	restoring   time.Duration // the part of Loading that restored a model which another payer pushed out, and pays for
	found       time.Duration // how long a load took that the gateway did not begin
	index       int           // in Scheduler.running
	charged     time.Duration
	share       time.Duration // the server's share when the lease was taken
	wanted      time.Duration // how long others had waited for the server when the lease was taken
	released    bool
	held        time.Duration
	used        time.Duration
}

// Reason is why a request went to its backend.
type Reason string

// The reasons.
const (
	ReasonLoaded Reason = "loaded"     // the least busy backend with the model in its memory
	ReasonPrefix Reason = "warm_start" // a backend with the model that most likely has seen the beginning of the conversation
	ReasonChange Reason = "change"     // the backend loaded the model for the request
	ReasonOnly   Reason = "only"       // no other backend has the model
)

// Release gives the slot to the next request, and returns how long it was held. A second call changes nothing.
func (l *Lease) Release() time.Duration {
	if l.released || l.sched == nil {
		return l.held
	}
	now := time.Now()
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	l.releaseLocked(now, true)
	return l.held
}

// Charged returns, after Release, what the payer was charged in the order of payers: its service while other payers waited, in nanoseconds
// of one slot, not yet divided by the weight.
func (l *Lease) Charged() time.Duration { return l.charged }

// NoteWaitInside notes how long the request waited inside Ollama, by Ollama's own record. A wait shows that Ollama got more requests than
// it has slots.
func (l *Lease) NoteWaitInside(d time.Duration) {
	if l.sched != nil {
		l.inside = max(0, d)
	}
}

// GPU returns the lease's part of the backend's time, so far or until Release. At each instant all slots in use on the backend have equal
// parts, and the lease has one for each of its slots. So the parts of all leases never add up to more than the time that passed.
func (l *Lease) GPU() time.Duration {
	if l.released || l.sched == nil {
		return l.used
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	l.server.count(time.Now(), 0)
	return l.part()
}

// part is the lease's part of the backend's time, as of the last count.
func (l *Lease) part() time.Duration { return time.Duration(l.slots) * (l.server.share - l.share) }

// takeOver adds d to the lease's part of the backend's time. Division rounds down: the parts stay below the whole.
func (l *Lease) takeOver(d time.Duration) { l.share -= d / time.Duration(l.slots) }

// grantLocked takes a free slot of srv.
func (s *Scheduler) grantLocked(srv *serverState, c *payerState, a *Ask, arrived, now time.Time, why Reason) *Lease {
	st := srv.model(a.Model)
	if !st.known {
		st.options, st.known = string(a.Options), true // this request loads the model with them, or the loaded model has them
	}
	l := &Lease{
		Backend: srv.b, Waited: now.Sub(arrived), Why: why,
		sched: s, server: srv, model: st, payer: c, taken: now, plain: a.Plain, embeds: a.Embeds, texts: a.Texts, inside: -1,
	}
	srv.count(now, 0)
	l.share, l.wanted = srv.share, srv.wantedByOthers(c, now)
	l.queued = st.inFlight > 0
	st.inFlight++
	l.occupy(a.Texts, now)
	l.atBound = st.slots >= srv.limit(st)
	s.startLocked(l)
	return l
}

// startLocked charges the lease's payer the time for which the lease is expected to be held.
func (s *Scheduler) startLocked(l *Lease) {
	c := l.payer
	l.charged = s.estimateLocked(l)
	c.running++
	c.pay(s.lowestLocked())
	s.virtual = max(s.virtual, c.counter-c.held)
	c.held += float64(l.charged) / c.weight
	c.charge(l.charged)
	l.index = len(s.running)
	s.running = append(s.running, l)
}

func (s *Scheduler) estimateLocked(l *Lease) time.Duration {
	if l.payer.mean > 0 {
		return l.payer.mean
	}
	return time.Duration(l.slots) * cmp.Or(l.model.holds.median, s.holds.median, time.Second)
}

// average moves mean towards d.
func average[T ~int64](mean *T, d T) {
	if *mean == 0 {
		*mean = max(d, 1)
		return
	}
	*mean = max(*mean+(d-*mean)/16, 1)
}

// releaseLocked returns the slot. served is false if the slot was never used because the request had left: then the lease is no
// measurement of how long requests take.
func (l *Lease) releaseLocked(now time.Time, served bool) {
	s, srv, st, c := l.sched, l.server, l.model, l.payer
	l.released = true
	l.held = now.Sub(l.taken)
	srv.count(now, 0)
	l.used = l.part()
	st.count(now, 0)
	l.vacate(now)
	srv.use.note(c, now)
	var others time.Duration // how long it waited for a load of another request
	if served {
		others = s.foundLocked(l, now)
	}
	if served {
		l.delayLocked(now, others)
	}
	if served || l.Why == ReasonChange { // other leases have no row
		l.used += c.takeDebt()
	}
	st.inFlight--
	srv.unsettled = srv.unsettled && srv.inFlight > 0
	c.running--
	c.held -= float64(l.charged) / c.weight
	if c.running == 0 {
		c.held = 0 // removes rounding errors
	}
	charge := l.serve(min(srv.contested(l, now), l.held-others-l.restoring), now)
	c.charge(charge - l.charged)
	l.charged = charge
	st.note(l, charge, now)
	last := s.running[len(s.running)-1]
	s.running[l.index] = last
	last.index = l.index
	s.running[len(s.running)-1] = nil
	s.running = s.running[:len(s.running)-1]
	if served {
		if !l.taken.Before(srv.loaded) { // a change since then may have pushed its model out
			st.seen = now
		}
		work := l.held - l.Loading - others
		average(&c.mean, l.serve(work, now))
		st.holds.mix(c.name, work, now)
		s.holds.mix(c.name, work, now)
		srv.adjustSlots(st, l, now)
		st.learn(c.name, l.counted, now)
	}
	s.growLocked(srv, st, now)
	srv.dropUnused(st)
	s.dispatchLocked(srv, now)
}

// advanceLocked charges requests that hold a slot for longer than they were charged for. It runs at most every few milliseconds, because
// it looks at all running requests.
func (s *Scheduler) advanceLocked(now time.Time) {
	if now.Sub(s.advanced) < 5*time.Millisecond {
		return
	}
	s.advanced = now
	for _, l := range s.running {
		if over := l.slotTime(now) - l.charged; over > 0 {
			l.charged += over
			l.payer.held += float64(over) / l.payer.weight
			l.payer.charge(over)
		}
	}
}
