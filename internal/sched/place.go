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
	firstSlots  = 4                     // of a model on a backend for which none are set
	mostSlots   = 64                    // that are found by trying
	insideBound = 50 * time.Millisecond // a longer wait inside Ollama is a sign that it had no slot
	cleanRuns   = 50                    // at the bound without such a wait: one more is tried
	manyModels  = 64                    // stations kept of models that nobody uses
)

// place is a backend as the scheduler sees it.
type place struct {
	b        *backend.Backend
	stations map[string]*station
	inFlight int // slots in use of all models, and loads
	use      use
	// turning is the change of model that the place drains for: nothing else is begun until what runs is done. load is the change itself.
	turning *turn
	load    *load
	loaded  time.Time // when the last change was done
	wake    *time.Timer
	wakes   time.Time              // when wake looks at the place again
	kept    time.Time              // until when what was loaded for a client that has left is kept, because that client may return
	loading samples[time.Duration] // what a change takes
	// fits is how many models its memory holds, by what a load has pushed out; 0: no load has yet.
	fits int
	// unsettled: a load has pushed out a model that is in use. Nothing is begun until what runs has ended.
	unsettled bool
	// share is what a lease that was there from the start would have of the backend: the integral of one over inFlight, as of shared.
	share  time.Duration
	shared time.Time
	work   time.Duration // the integral of inFlight
	marks  marks
	last   foundLoad
	want   want
	// evicted are the models that the last change has pushed out, and by whom. took reports that others used the place less than a stint
	// before.
	evicted   map[loadedAs]bool
	evictedBy *client
	took      bool
}

// loadedAs is a model with the load-time options that it is loaded with.
type loadedAs struct{ model, options string }

// use is when a place was last used, and when by another payer than the last one.
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

// besides is when the place was last used by another payer than c.
func (u *use) besides(c *client) time.Time {
	if u.by == c {
		return u.others
	}
	return u.last
}

// station is one model on one backend.
type station struct {
	model    string
	inFlight int           // requests
	slots    int           // that these have
	hungry   int           // requests that take more slots as they become free
	work     time.Duration // the integral of slots, as of worked
	worked   time.Time
	found    int                    // slots, where none are set
	clean    int                    // runs at the bound
	cleanBy  string                 // the payer of the last
	lowered  time.Time              // when found last went down
	seen     time.Time              // when it last worked
	holds    samples[time.Duration] // how long a slot is held
	inside   samples[time.Duration] // how long requests at the bound waited inside Ollama
	loading  samples[time.Duration] // what loading it took
	first    samples[time.Duration] // how long plain requests wait for the first byte of a stream
	perToken samples[time.Duration] // of an answer
	perRead  samples[time.Duration] // of a long prompt
	ended    [mostEnded]ended       // the last requests
	ends     int
	template samples[int64]     // tokens that it adds to a short prompt
	density  samples[int64]     // tokens of a long prompt for each thousand that were likely
	own      map[string]prompts // by payer
	// options are those it was loaded with, as far as is known.
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

// usual is how long a slot is held here; otherwise, where that is not known. A station that is not there knows nothing.
func (st *station) usual(otherwise time.Duration) time.Duration {
	if st != nil && st.holds.median > 0 {
		return st.holds.median
	}
	return otherwise
}

// tidy drops a station that nobody uses when there are many: clients choose the names of models.
func (p *place) tidy(st *station) {
	if st.inFlight == 0 && len(p.stations) > manyModels {
		delete(p.stations, st.model)
	}
}

// limit is how many requests the model may have in flight here.
func (p *place) limit(st *station) int {
	if p.b.State().Installed[st.model].Embeds {
		return 1
	}
	if set := p.b.Bounds().Slots; set > 0 {
		return set
	}
	return st.found
}

// free says whether one more request for the model may be given to the backend.
func (p *place) free(model string) bool {
	if total := p.b.Bounds().Total; total > 0 && p.inFlight >= total || p.turning != nil || p.unsettled {
		return false
	}
	// Who caused a load goes first when it is done, also where the backend says before that it has the model.
	if p.load != nil && (!p.load.beside || p.load.lane.model == model) {
		return false
	}
	st := p.stations[model]
	return st == nil || st.slots < p.limit(st)
}

// has reports whether the model is in the backend's memory, as far as is known: a backend that does not say is taken to have it.
func (p *place) has(model string) bool {
	state := p.b.State()
	if !loadable(state, model) || p.holds(model) {
		return true
	}
	st := p.stations[model]
	return st != nil && (st.inFlight > 0 || !st.seen.IsZero() && !st.seen.Before(state.Checked))
}

// loadable reports whether a load of the model can change anything: not where the backend does not say what it has in its memory, and
// not where the model is not installed, because its own answer says so.
func loadable(state backend.State, model string) bool {
	_, installed := state.Installed[model]
	return state.Loaded != nil && (installed || state.Installed == nil)
}

// warm reports whether the lane's model is in the backend's memory with the lane's options, as far as is known: Ollama loads a model again
// for other options.
func (p *place) warm(name laneName) bool {
	st := p.stations[name.model]
	return p.has(name.model) && (st == nil || !st.known || st.options == name.options || !loadable(p.b.State(), name.model))
}

// holds reports whether the backend says that the model is in its memory.
func (p *place) holds(model string) bool {
	_, loaded := p.b.State().Loaded[model]
	return loaded
}

// watch finds how many slots a model has where none are set. Ollama never says that it is busy with a loaded model, but its records
// show that a request waited inside. Only requests that took the last slot count, and only plain ones: a schema is compiled and an image
// read in that time. Most payers must have seen it.
func (p *place) watch(st *station, l *Lease, now time.Time) {
	if l.inside < 0 || !l.atBound || !l.plain || l.embeds { // of embeddings Ollama reports no times but the whole
		return
	}
	payer := l.client.payer
	st.inside.put(payer, l.inside, now)
	switch {
	case st.inside.median > insideBound && l.inside > insideBound:
		// One sign for all that were let in before it was seen.
		if l.taken.After(st.lowered) {
			st.found, st.clean, st.lowered = max(1, st.found-1), 0, now
		}
	case st.inside.median > insideBound || l.inside > insideBound:
	case len(st.inside.list) > 1 && st.cleanBy == payer: // one payer of several does not raise them by itself
	default:
		st.cleanBy = payer
		if st.clean++; st.clean >= cleanRuns {
			st.found, st.clean = min(st.found+1, mostSlots), 0
		}
	}
}

// count brings share and work up to now, and then changes inFlight by more. Division rounds down, so that the parts stay below the whole.
// Of two that took their time before the lock, the earlier may come later: time does not go back for it.
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

// burden is how long one more request would have to share the backend, by what requests for the model have taken there.
func (p *place) burden(model string, usual time.Duration) float64 {
	mean := max(p.stations[model].usual(usual), time.Millisecond)
	return float64(p.inFlight+1) * float64(mean) / cmp.Or(p.b.Bounds().Weight, 1)
}

// chooseLocked is the place for a request that need not wait: one with the model in its memory and a slot; of those the one that
// has seen the beginning of the conversation, or else the least busy. It is nil where there is none.
func (s *Scheduler) chooseLocked(serving []*backend.Backend, a *Ask) (*place, Reason) {
	var best *place
	var least float64
	for _, b := range serving {
		p := s.placeLocked(b)
		if !p.warm(a.lane()) || !p.free(a.Model) {
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

// rendezvous is how well a backend suits a conversation, from 0 to 1: each conversation has its own order of the backends, which
// changes for no other when one comes or goes (Thaler and Ravishankar, 1998).
func rendezvous(name string, prefix uint64) float64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(name)
	maphash.WriteComparable(&h, prefix)
	return float64(h.Sum64()>>11) / (1 << 53)
}

// byRoomLocked orders places for a request that may have to load its model: those that do the least and hold the least first.
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

// fillLocked gives away what p has to give, in the order of turns.
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
			if p.inFlight > 0 && !p.room(p.turning.lane.model) {
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

// nextLocked is whose turn it is to have a slot of p, of all that want a model that it has in its memory.
func (s *Scheduler) nextLocked(p *place, now time.Time) *waiter {
	var best *waiter
	var first rank
	for _, l := range s.lanes {
		if !p.free(l.name.model) || !p.warm(l.name) || !s.eligible(p, l.name) {
			continue
		}
		if w, r := s.nextIn(l, p.b, now); w != nil && before(w, r, best, first) {
			best, first = w, r
		}
	}
	return best
}

func (s *Scheduler) eligible(p *place, name laneName) bool {
	return slices.Contains(s.fleet.Serving(name.model), p.b) && !tooOld(p.b, name.since)
}

// patience is how long a batch request is passed over.
func (s *Scheduler) patience() time.Duration { return s.o.MaxWait / 4 }

// turnLocked gives w a slot of p.
func (s *Scheduler) turnLocked(w *waiter, p *place, now time.Time) {
	s.leaveLocked(w)
	s.handLocked(w, s.grantLocked(p, w.client, w.ask, w.arrived, now, ReasonLoaded), now)
}

// handLocked gives w, which has left the queue, the lease that it waited for.
func (s *Scheduler) handLocked(w *waiter, l *Lease, now time.Time) {
	l.Ahead = w.ahead
	w.lease = l
	close(w.ready)
	s.turnBackLocked(w.lane, now)
}

// room reports whether the backend's memory takes the model besides what it has, as far as is known: until a load has pushed another out
// it is taken to. With other options a model takes its own place.
func (p *place) room(model string) bool {
	loaded := p.b.State().Loaded
	return loaded != nil && !p.holds(model) && (p.fits == 0 || len(loaded) < p.fits)
}

// turn is the time in which a place drains for a change of model.
type turn struct {
	lane    laneName
	request *waiter // that causes it
	since   time.Time
	work    time.Duration // of the place, when it began
	slots   int           // of the models that it had until then
}

// load is a change of the model at a place.
type load struct {
	turn
	cancel context.CancelFunc
	beside bool              // the backend serves what it has meanwhile
	stops  bool              // there was no room besides what it has: the load stopped the backend for everybody
	before map[string]string // what it had, with which load-time options as far as is known
	began  time.Time
	share  time.Duration // of the place, when it began
	lent   time.Duration // of the place, that requests had while they waited in Ollama for the load
	booked time.Duration // of the place, on the row of its request, which has left
}
