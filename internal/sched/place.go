package sched

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"
	"time"

	"ollama-api-service/internal/backend"
)

const (
	firstSlots  = 4                     // the assumed slots of a model on a backend without a set number
	mostSlots   = 64                    // the largest number of slots that measurements can lead to
	insideBound = 50 * time.Millisecond // a longer wait inside Ollama shows that it had no free slot
	cleanRuns   = 50                    // after this number of requests at the bound without such a wait, one more slot is tried
	manyModels  = 64                    // the number of unused models whose state is kept
)

// place is the scheduler's state of a backend.
type place struct {
	b        *backend.Backend
	stations map[string]*station
	inFlight int // slots in use of all models, and loads
	use      use
	// turning is the change of model that the backend drains for: no request starts until the running ones have ended. load is the change
	// itself.
	turning *turn
	load    *load
	loaded  time.Time // when the last change ended
	wake    *time.Timer
	wakes   time.Time              // when wake fires
	kept    time.Time              // until then a model is kept that was loaded for a client which left, because that client may return
	loading samples[time.Duration] // how long a change takes
	// fits is the number of models that the memory holds, learned from loads that pushed models out; 0: not known.
	fits int
	// unsettled: a load has pushed out a model that is in use. No request starts until the running ones have ended.
	unsettled bool
	// share is the part of the backend's time that a lease of one slot since the start would have: the integral of 1/inFlight until shared.
	share  time.Duration
	shared time.Time
	work   time.Duration // the integral of inFlight
	marks  marks
	last   foundLoad
	want   want
	// evicted are the models that the last change pushed out, and evictedBy is its payer. took reports whether others used the backend less
	// than a stint before.
	evicted   map[loadedAs]bool
	evictedBy *client
	took      bool
}

// loadedAs is a loaded model and its load-time options.
type loadedAs struct{ model, options string }

// use records when a backend was last used, and when by another payer than that one.
type use struct {
	last, others time.Time
	by           *client
}

func (u *use) note(c *client, now time.Time) {
	if u.by != c {
		u.by, u.others = c, u.last
	}
	u.last = now
}

// besides is when the backend was last used by another payer than c.
func (u *use) besides(c *client) time.Time {
	if u.by == c {
		return u.others
	}
	return u.last
}

// station is the state of one model on one backend.
type station struct {
	model    string
	inFlight int           // requests
	slots    int           // slots in use
	hungry   int           // the number of requests that take more slots as they become free
	work     time.Duration // the integral of slots until worked
	worked   time.Time
	found    int                    // the measured number of slots, used if none is set
	clean    int                    // requests at the bound that did not wait inside Ollama
	cleanBy  string                 // the payer of the last of these
	lowered  time.Time              // when found was last lowered
	seen     time.Time              // when a request last showed that the model is in memory
	holds    samples[time.Duration] // how long a slot is held
	inside   samples[time.Duration] // how long requests at the bound waited inside Ollama
	loading  samples[time.Duration] // how long loading it took
	first    samples[time.Duration] // how long plain requests wait for the first byte of a stream
	perToken samples[time.Duration] // time for a token of an answer
	perRead  samples[time.Duration] // time for a token of a long prompt
	ended    [mostEnded]ended       // a ring of the last requests
	ends     int
	template samples[int64]     // tokens that the template adds to a short prompt
	density  samples[int64]     // real tokens of a long prompt per thousand likely ones
	own      map[string]prompts // by payer
	// options are the load-time options of the loaded model, if known.
	options string
	known   bool
}

func (s *Scheduler) placeLocked(b *backend.Backend) *place {
	p := s.places[b]
	if p == nil {
		p = &place{b: b, stations: make(map[string]*station)}
		s.places[b] = p
	}
	return p
}

func (p *place) station(model string) *station {
	st := p.stations[model]
	if st == nil {
		st = &station{model: model, found: firstSlots}
		p.stations[model] = st
	}
	return st
}

// usual is how long a slot is usually held for the model, or otherwise if that is not known. st may be nil.
func (st *station) usual(otherwise time.Duration) time.Duration {
	if st != nil && st.holds.median > 0 {
		return st.holds.median
	}
	return otherwise
}

// tidy drops the state of an unused model if there are many, because clients choose the names of models.
func (p *place) tidy(st *station) {
	if st.inFlight == 0 && len(p.stations) > manyModels {
		delete(p.stations, st.model)
	}
}

// limit is the number of slots that the model has here.
func (p *place) limit(st *station) int {
	if p.b.State().Installed[st.model].Embeds {
		return 1
	}
	if set := p.b.Bounds().Slots; set > 0 {
		return set
	}
	return st.found
}

// free reports whether one more request for the model may go to the backend.
func (p *place) free(model string) bool {
	if total := p.b.Bounds().Total; total > 0 && p.inFlight >= total || p.turning != nil || p.unsettled {
		return false
	}
	// The request that caused a load is the first after it, even if the backend lists the model before the load returns.
	if p.load != nil && (!p.load.beside || p.load.queue.model == model) {
		return false
	}
	st := p.stations[model]
	return st == nil || st.slots < p.limit(st)
}

// has reports whether the model is in the backend's memory, as far as is known. If a backend does not list its models, the answer is true.
func (p *place) has(model string) bool {
	state := p.b.State()
	if !loadable(state, model) || p.holds(model) {
		return true
	}
	st := p.stations[model]
	return st != nil && (st.inFlight > 0 || !st.seen.IsZero() && !st.seen.Before(state.Checked))
}

// loadable reports whether a load of the model makes sense. It does not if the backend does not list the models in its memory, or if the
// model is not installed: then the request gets Ollama's own error.
func loadable(state backend.State, model string) bool {
	_, installed := state.Installed[model]
	return state.Loaded != nil && (installed || state.Installed == nil)
}

// warm reports whether the model of name is in the backend's memory with the options of name, as far as is known. For other options Ollama
// loads the model again.
func (p *place) warm(name queueName) bool {
	st := p.stations[name.model]
	return p.has(name.model) && (st == nil || !st.known || st.options == name.options || !loadable(p.b.State(), name.model))
}

// holds reports whether the backend lists the model as loaded.
func (p *place) holds(model string) bool {
	_, loaded := p.b.State().Loaded[model]
	return loaded
}

// watch finds the number of slots of a model if none is set. Ollama never reports that it is busy with a loaded model, but its records show
// that a request waited inside. Only requests that took the last slot count, and only plain ones, because Ollama also compiles schemas and
// reads images in that time. The number falls only if most payers have seen such waits.
func (p *place) watch(st *station, l *Lease, now time.Time) {
	if l.inside < 0 || !l.atBound || !l.plain || l.embeds { // for embeddings Ollama reports only the total time
		return
	}
	payer := l.client.payer
	st.inside.put(payer, l.inside, now)
	switch {
	case st.inside.median > insideBound && l.inside > insideBound:
		// Requests that were admitted before the number was lowered do not lower it again.
		if l.taken.After(st.lowered) {
			st.found, st.clean, st.lowered = max(1, st.found-1), 0, now
		}
	case st.inside.median > insideBound || l.inside > insideBound:
	case len(st.inside.list) > 1 && st.cleanBy == payer: // if there are several payers, one of them cannot raise the number by itself
	default:
		st.cleanBy = payer
		if st.clean++; st.clean >= cleanRuns {
			st.found, st.clean = min(st.found+1, mostSlots), 0
		}
	}
}

// count updates share and work to now, and then changes inFlight by more. Division rounds down, so the parts stay below the whole. Callers
// read the clock before they take the lock, so now may be earlier than in the call before: then count adds no time.
func (p *place) count(now time.Time, more int) {
	if passed := now.Sub(p.shared); passed > 0 {
		if p.inFlight > 0 {
			p.share += passed / time.Duration(p.inFlight)
			p.work += passed * time.Duration(p.inFlight)
		}
		p.shared = now
	}
	if more != 0 {
		p.marks.add(p.shared, p.share)
	}
	p.inFlight += more
}

// burden estimates how long one more request would take on the backend, from how long requests for the model usually take there.
func (p *place) burden(model string, usual time.Duration) float64 {
	mean := max(p.stations[model].usual(usual), time.Millisecond)
	return float64(p.inFlight+1) * float64(mean) / cmp.Or(p.b.Bounds().Weight, 1)
}

// chooseLocked returns a server for a request that need not wait: one with the model in its memory and a free slot. Of these it prefers the
// one that has seen the beginning of the conversation, otherwise the least busy. It returns nil if there is none.
func (s *Scheduler) chooseLocked(serving []*backend.Backend, a *Ask) (*place, Reason) {
	var best *place
	var least float64
	for _, b := range serving {
		p := s.placeLocked(b)
		if !p.warm(a.queueName()) || !p.free(a.Model) {
			continue
		}
		score := 0.0
		switch {
		case len(serving) == 1:
			return p, ReasonOnly
		case s.o.Prefix && a.Prefix != 0:
			score = -rendezvous(b.Name, a.Prefix) * cmp.Or(b.Bounds().Weight, 1)
		default:
			score = p.burden(a.Model, s.holds.median)
		}
		if best == nil || score < least {
			best, least = p, score
		}
	}
	if s.o.Prefix && a.Prefix != 0 {
		return best, ReasonPrefix
	}
	return best, ReasonLoaded
}

var seed = maphash.MakeSeed()

// rendezvous scores a backend for a conversation, from 0 to 1. Each conversation has its own order of the backends. If a backend is added
// or removed, the order of the others stays (Thaler and Ravishankar, 1998).
func rendezvous(name string, prefix uint64) float64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(name)
	maphash.WriteComparable(&h, prefix)
	return float64(h.Sum64()>>11) / (1 << 53)
}

// byRoomLocked orders servers for a request that may have to load its model: the least busy first, then those with the fewest models.
func (s *Scheduler) byRoomLocked(serving []*backend.Backend) []*place {
	list := make([]*place, 0, len(serving))
	for _, b := range serving {
		list = append(list, s.placeLocked(b))
	}
	slices.SortStableFunc(list, func(a, b *place) int {
		return cmp.Or(
			cmp.Compare(a.inFlight, b.inFlight),
			cmp.Compare(len(a.b.State().Loaded), len(b.b.State().Loaded)),
			a.use.last.Compare(b.use.last))
	})
	return list
}

// fillLocked grants the free slots of p to waiting requests in their order, and begins changes of its model.
func (s *Scheduler) fillLocked(p *place, now time.Time) {
	if s.waiting == 0 {
		return
	}
	s.advanceLocked(now)
	s.dropLocked(p)
	for s.waiting > 0 && (p.load == nil || p.load.beside) {
		if p.turning == nil && p.load == nil {
			p.turning = s.changeLocked(p, now)
		}
		if p.turning != nil {
			if p.inFlight > 0 && !p.room(p.turning.queue.model) {
				return
			}
			s.loadLocked(p, now)
			continue
		}
		w := s.nextLocked(p, now)
		if w == nil {
			return
		}
		s.turnLocked(w, p, now)
	}
}

// nextLocked is the next request for p, of all that want a model in its memory.
func (s *Scheduler) nextLocked(p *place, now time.Time) *waiter {
	var best *waiter
	var first rank
	for _, q := range s.queues {
		if !p.free(q.name.model) || !p.warm(q.name) || !s.eligible(p, q.name) {
			continue
		}
		if w, r := s.nextIn(q, p.b, now); w != nil && before(w, r, best, first) {
			best, first = w, r
		}
	}
	return best
}

func (s *Scheduler) eligible(p *place, name queueName) bool {
	return slices.Contains(s.fleet.Serving(name.model), p.b) && !tooOld(p.b, name.since)
}

// patience is how long a batch request lets interactive ones pass.
func (s *Scheduler) patience() time.Duration { return s.o.MaxWait / 4 }

// turnLocked grants w a slot of p.
func (s *Scheduler) turnLocked(w *waiter, p *place, now time.Time) {
	s.leaveLocked(w)
	s.handLocked(w, s.grantLocked(p, w.client, w.ask, w.arrived, now, ReasonLoaded), now)
}

// handLocked delivers the lease to w, which has left the queue.
func (s *Scheduler) handLocked(w *waiter, l *Lease, now time.Time) {
	l.Ahead = w.ahead
	w.lease = l
	close(w.ready)
	s.turnBackLocked(w.queue, now)
}

// room reports whether the backend's memory has room for one more model, as far as is known. Until a load has pushed a model out, the
// answer is true. A model that is already loaded with other options is replaced, so it needs no room but stops the backend.
func (p *place) room(model string) bool {
	loaded := p.b.State().Loaded
	return loaded != nil && !p.holds(model) && (p.fits == 0 || len(loaded) < p.fits)
}

// turn is a change of model that a backend drains for.
type turn struct {
	queue   queueName
	request *waiter // the request that causes it
	since   time.Time
	work    time.Duration // the backend's work when the drain began
	slots   int           // the slots of the models that it had then
}

// load is a load of a model on a backend.
type load struct {
	turn
	cancel context.CancelFunc
	beside bool              // the backend serves its other models during the load
	stops  bool              // there was no room: the load stopped the backend for all requests
	before map[string]string // the models that it had, and their load-time options if known
	began  time.Time
	share  time.Duration // the backend's share when the load began
	lent   time.Duration // the backend's time that requests had while they waited in Ollama for the load
	booked time.Duration // the backend's time that was booked with its request, which has left
}
