package sched

import (
	"cmp"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/backend"
)

// Lease is a slot in use. Release it always. A Lease that no Scheduler made holds none, for requests that need none.
type Lease struct {
	Backend *backend.Backend
	// Waited is how long the request stood in the queue, without the time in which its model was loaded for it.
	Waited time.Duration
	// Loading is how long its model was loaded for it: it caused the change.
	Loading time.Duration
	// Why says how the backend was chosen, and Ahead how many waited for the model when the request came.
	Why   Reason
	Ahead int

	sched    *Scheduler
	place    *place
	station  *station
	client   *client
	taken    time.Time
	slots    int           // that it has
	wants    int           // that it takes as they become free
	since    time.Time     // for how long it has as many
	before   time.Duration // of slots, until then
	embeds   bool          // as of the Ask
	atBound  bool          // it took the last slot
	plain    bool          // as of the Ask
	inside   time.Duration // what it waited inside Ollama; negative: nobody said
	counted  counted
	prompt   Prompt        // of one that Ollama has not counted
	read     time.Duration // in which Ollama evaluated the prompt, by its own record; 0: not known
	wide     time.Duration // of the station's slots, when it was taken
	delays   time.Duration // of other slots, by the evaluation of its prompt
	slowed   time.Duration // by the prompts of others
	said     bool          // Ollama's record says how long the model took to be ready, and that is loaded
	loaded   time.Duration // likewise
	began    atomic.Int64  // nanoseconds from taken to the first byte of a stream; 0: none yet
	queued   bool          // others ran with the model when it was taken
	lent     time.Duration // of the place, that others had while they waited for a load that this one has caused
	excused  time.Duration // for which it has waited for a load that another has caused, as far as that is known before its release
	spared   time.Duration // of Loading, that brought back what another payer has pushed out and pays for
	found    time.Duration // how long a load took that the gateway did not begin
	index    int           // among those that run
	charged  time.Duration
	share    time.Duration // of the place, when it was taken
	wanted   time.Duration // likewise: for how long others had waited for it
	released bool
	held     time.Duration
	used     time.Duration
}

// Reason is why a request went to its backend.
type Reason string

// The reasons.
const (
	ReasonLoaded Reason = "loaded"     // it has the model in its memory, and was the least busy of those
	ReasonPrefix Reason = "warm_start" // and it has most likely seen the beginning of the conversation
	ReasonChange Reason = "change"     // it changed its model for it
	ReasonOnly   Reason = "only"       // no other has the model
)

// Release gives the slot to whose turn it is, and returns how long it was held. A second call changes nothing.
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

// Inside notes how long the request waited inside Ollama, by its own record: a sign that it was given more than it has slots.
func (l *Lease) Inside(d time.Duration) {
	if l.sched != nil {
		l.inside = max(0, d)
	}
}

// GPU is the lease's part of the backend's time, so far or until Release: of each instant, a part for each slot that it had, of as many as
// there were in use on the backend. So the parts of all leases never add up to more than the time that passed.
func (l *Lease) GPU() time.Duration {
	if l.released || l.sched == nil {
		return l.used
	}
	l.sched.mu.Lock()
	defer l.sched.mu.Unlock()
	l.place.count(time.Now(), 0)
	return l.part()
}

// part is what the lease has had of the backend, as of the last count.
func (l *Lease) part() time.Duration { return time.Duration(l.slots) * (l.place.share - l.share) }

// takeOver adds d to what the lease has had of the backend. Division rounds down: the parts stay below the whole.
func (l *Lease) takeOver(d time.Duration) { l.share -= d / time.Duration(l.slots) }

// grantLocked takes a slot at p that is free.
func (s *Scheduler) grantLocked(p *place, c *client, a *Ask, arrived, now time.Time, why Reason) *Lease {
	st := p.station(a.Model)
	if !st.known {
		st.options, st.known = string(a.Options), true // this request loads it, or what is loaded is asked for like this
	}
	l := &Lease{
		Backend: p.b, Waited: now.Sub(arrived), Why: why,
		sched: s, place: p, station: st, client: c, taken: now, plain: a.Plain, embeds: a.Embeds, inside: -1,
	}
	p.count(now, 0)
	l.share, l.wanted = p.share, p.wantedBesides(c, now)
	l.queued = st.inFlight > 0
	st.inFlight++
	l.occupy(a.Texts, now)
	l.atBound = st.slots >= p.limit(st)
	s.startLocked(l)
	return l
}

// startLocked charges the lease's key by what it is expected to hold.
func (s *Scheduler) startLocked(l *Lease) {
	c := l.client
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
	if l.client.mean > 0 {
		return l.client.mean
	}
	return time.Duration(l.slots) * cmp.Or(l.station.holds.median, s.holds.median, time.Second)
}

// average moves a mean towards d.
func average[T ~int64](mean *T, d T) {
	if *mean == 0 {
		*mean = max(d, 1)
		return
	}
	*mean = max(*mean+(d-*mean)/16, 1)
}

// releaseLocked gives the slot back. One that was never used, because its request had left, says nothing of how long they take.
func (l *Lease) releaseLocked(now time.Time, served bool) {
	s, p, st, c := l.sched, l.place, l.station, l.client
	l.released = true
	l.held = now.Sub(l.taken)
	p.count(now, 0)
	l.used = l.part()
	st.count(now, 0)
	l.vacate(now)
	p.use.note(c, now)
	var others time.Duration // for which it waited for a load that another has caused
	if served {
		others = s.foundLocked(l, now)
	}
	if served {
		l.delayLocked(now, others)
	}
	if served || l.Why == ReasonChange { // others are on no row
		l.used += c.settle()
	}
	st.inFlight--
	p.unsettled = p.unsettled && p.inFlight > 0
	c.running--
	c.held -= float64(l.charged) / c.weight
	if c.running == 0 {
		c.held = 0 // of the rounding
	}
	charge := l.serve(min(p.contested(l, now), l.held-others-l.spared), now)
	c.charge(charge - l.charged)
	st.note(l, charge, now)
	last := s.running[len(s.running)-1]
	s.running[l.index] = last
	last.index = l.index
	s.running[len(s.running)-1] = nil
	s.running = s.running[:len(s.running)-1]
	if served {
		if !l.taken.Before(p.loaded) { // a change since then may have pushed its model out
			st.seen = now
		}
		work := l.held - l.Loading - others
		average(&c.mean, l.serve(work, now))
		st.holds.mix(c.payer, work, now)
		s.holds.mix(c.payer, work, now)
		p.watch(st, l, now)
		st.learn(c.payer, l.counted, now)
	}
	s.growLocked(p, st, now)
	p.tidy(st)
	s.fillLocked(p, now)
}

// advanceLocked charges those that hold a slot for longer than they were charged for. It is done at most every few milliseconds:
// it looks at all that run.
func (s *Scheduler) advanceLocked(now time.Time) {
	if now.Sub(s.advanced) < 5*time.Millisecond {
		return
	}
	s.advanced = now
	for _, l := range s.running {
		if over := l.slotTime(now) - l.charged; over > 0 {
			l.charged += over
			l.client.held += float64(over) / l.client.weight
			l.client.charge(over)
		}
	}
}
