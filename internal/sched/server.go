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
	firstSlots    = 4                     // the assumed slots of a model on a backend without a set number
	maxFoundSlots = 64                    // the largest number of slots that measurements can lead to
	insideBound   = 50 * time.Millisecond // a longer wait inside Ollama shows that it had no free slot
	cleanRuns     = 50                    // after this number of requests at the bound without such a wait, one more slot is tried
	maxModels     = 64                    // the number of unused models whose state is kept
)

// serverState is the scheduler's state of a backend.
type serverState struct {
	b        *backend.Backend
	models   map[string]*modelState
	inFlight int // slots in use of all models, and loads
	use      use
	// draining is the change of model that the backend drains for: no request starts until the running ones have ended. load is the change
	// itself.
	draining  *drain
	load      *modelLoad
	loaded    time.Time // when the last change ended
	wake      *time.Timer
	wakeAt    time.Time              // when wake fires
	keptUntil time.Time              // until then a model is kept that was loaded for a client which left, because that client may return
	loading   samples[time.Duration] // how long a change takes
	// fits is the number of models that the memory holds, learned from loads that pushed models out; 0: not known.
	fits int
	// unsettled: a load has pushed out a model that is in use. No request starts until the running ones have ended.
	unsettled bool
	// share is the part of the backend's time that a lease of one slot since the start would have: the integral of 1/inFlight until shared.
	share    time.Duration
	shared   time.Time
	work     time.Duration // the integral of inFlight
	marks    shareMarks
	lastLoad pastLoad
	demand   demand
	// evicted are the models that the last change pushed out, and evictedBy is its payer. tookOver reports whether others used the backend
	// less than a stint before.
	evicted   map[loadedAs]bool
	evictedBy *payerState
	tookOver  bool
}

// loadedAs is a loaded model and its load-time options.
type loadedAs struct{ model, options string }

// use records when a backend was last used, and when by another payer than that one.
type use struct {
	last, others time.Time
	by           *payerState
}

func (u *use) note(c *payerState, now time.Time) {
	if u.by != c {
		u.by, u.others = c, u.last
	}
	u.last = now
}

// lastByOthers is when the backend was last used by another payer than c.
func (u *use) lastByOthers(c *payerState) time.Time {
	if u.by == c {
		return u.others
	}
	return u.last
}

// modelState is the state of one model on one backend.
type modelState struct {
	model    string
	inFlight int           // requests
	slots    int           // slots in use
	growing  int           // the number of requests that take more slots as they become free
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
	ended    [maxEnded]endedRequest // a ring of the last requests
	ends     int
	template samples[int64]     // tokens that the template adds to a short prompt
	density  samples[int64]     // real tokens of a long prompt per thousand likely ones
	own      map[string]prompts // by payer
	// options are the load-time options of the loaded model, if known.
	options string
	known   bool
}

func (s *Scheduler) serverLocked(b *backend.Backend) *serverState {
	srv := s.servers[b]
	if srv == nil {
		srv = &serverState{b: b, models: make(map[string]*modelState)}
		s.servers[b] = srv
	}
	return srv
}

func (srv *serverState) model(model string) *modelState {
	st := srv.models[model]
	if st == nil {
		st = &modelState{model: model, found: firstSlots}
		srv.models[model] = st
	}
	return st
}

// usual is how long a slot is usually held for the model, or otherwise if that is not known. st may be nil.
func (st *modelState) usual(otherwise time.Duration) time.Duration {
	if st != nil && st.holds.median > 0 {
		return st.holds.median
	}
	return otherwise
}

// dropUnused drops the state of an unused model if there are many, because clients choose the names of models.
func (srv *serverState) dropUnused(st *modelState) {
	if st.inFlight == 0 && len(srv.models) > maxModels {
		delete(srv.models, st.model)
	}
}

// limit is the number of slots that the model has here.
func (srv *serverState) limit(st *modelState) int {
	if srv.b.State().Installed[st.model].Embeds {
		return 1
	}
	if set := srv.b.Bounds().Slots; set > 0 {
		return set
	}
	return st.found
}

// free reports whether one more request for the model may go to the backend.
func (srv *serverState) free(model string) bool {
	if total := srv.b.Bounds().Total; total > 0 && srv.inFlight >= total || srv.draining != nil || srv.unsettled {
		return false
	}
	// The request that caused a load is the first after it, even if the backend lists the model before the load returns.
	if srv.load != nil && (!srv.load.keepsServing || srv.load.queue.model == model) {
		return false
	}
	st := srv.models[model]
	return st == nil || st.slots < srv.limit(st)
}

// has reports whether the model is in the backend's memory, as far as is known. If a backend does not list its models, the answer is true.
func (srv *serverState) has(model string) bool {
	state := srv.b.State()
	if !loadable(state, model) || srv.holds(model) {
		return true
	}
	st := srv.models[model]
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
func (srv *serverState) warm(name queueName) bool {
	st := srv.models[name.model]
	return srv.has(name.model) && (st == nil || !st.known || st.options == name.options || !loadable(srv.b.State(), name.model))
}

// holds reports whether the backend lists the model as loaded.
func (srv *serverState) holds(model string) bool {
	_, loaded := srv.b.State().Loaded[model]
	return loaded
}

// adjustSlots finds the number of slots of a model if none is set. Ollama never reports that it is busy with a loaded model, but its
// records show that a request waited inside. Only requests that took the last slot count, and only plain ones, because Ollama also compiles
// schemas and reads images in that time. The number falls only if most payers have seen such waits.
func (srv *serverState) adjustSlots(st *modelState, l *Lease, now time.Time) {
	if l.inside < 0 || !l.atBound || !l.plain || l.embeds { // for embeddings Ollama reports only the total time
		return
	}
	payer := l.payer.name
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
			st.found, st.clean = min(st.found+1, maxFoundSlots), 0
		}
	}
}

// count updates share and work to now, and then changes inFlight by more. Division rounds down, so the parts stay below the whole. Callers
// read the clock before they take the lock, so now may be earlier than in the call before: then count adds no time.
func (srv *serverState) count(now time.Time, more int) {
	if passed := now.Sub(srv.shared); passed > 0 {
		if srv.inFlight > 0 {
			srv.share += passed / time.Duration(srv.inFlight)
			srv.work += passed * time.Duration(srv.inFlight)
		}
		srv.shared = now
	}
	if more != 0 {
		srv.marks.add(srv.shared, srv.share)
	}
	srv.inFlight += more
}

// burden estimates how long one more request would take on the backend, from how long requests for the model usually take there.
func (srv *serverState) burden(model string, usual time.Duration) float64 {
	mean := max(srv.models[model].usual(usual), time.Millisecond)
	return float64(srv.inFlight+1) * float64(mean) / cmp.Or(srv.b.Bounds().Weight, 1)
}

// chooseLocked returns a server for a request that need not wait: one with the model in its memory and a free slot. Of these it prefers the
// one that has seen the beginning of the conversation, otherwise the least busy. It returns nil if there is none.
func (s *Scheduler) chooseLocked(serving []*backend.Backend, a *Ask) (*serverState, Reason) {
	var best *serverState
	var least float64
	for _, b := range serving {
		srv := s.serverLocked(b)
		if !srv.warm(a.queueName()) || !srv.free(a.Model) {
			continue
		}
		score := 0.0
		switch {
		case len(serving) == 1:
			return srv, ReasonOnly
		case s.o.Prefix && a.Prefix != 0:
			score = -rendezvous(b.Name, a.Prefix) * cmp.Or(b.Bounds().Weight, 1)
		default:
			score = srv.burden(a.Model, s.holds.median)
		}
		if best == nil || score < least {
			best, least = srv, score
		}
	}
	if s.o.Prefix && a.Prefix != 0 {
		return best, ReasonPrefix
	}
	return best, ReasonLoaded
}

var hashSeed = maphash.MakeSeed()

// rendezvous scores a backend for a conversation, from 0 to 1. Each conversation has its own order of the backends. If a backend is added
// or removed, the order of the others stays (Thaler and Ravishankar, 1998).
func rendezvous(name string, prefix uint64) float64 {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	_, _ = h.WriteString(name)
	maphash.WriteComparable(&h, prefix)
	return float64(h.Sum64()>>11) / (1 << 53)
}

// byRoomLocked orders servers for a request that may have to load its model: the least busy first, then those with the fewest models.
func (s *Scheduler) byRoomLocked(serving []*backend.Backend) []*serverState {
	list := make([]*serverState, 0, len(serving))
	for _, b := range serving {
		list = append(list, s.serverLocked(b))
	}
	slices.SortStableFunc(list, func(a, b *serverState) int {
		return cmp.Or(
			cmp.Compare(a.inFlight, b.inFlight),
			cmp.Compare(len(a.b.State().Loaded), len(b.b.State().Loaded)),
			a.use.last.Compare(b.use.last))
	})
	return list
}

// dispatchLocked grants the free slots of srv to waiting requests in their order, and begins changes of its model.
func (s *Scheduler) dispatchLocked(srv *serverState, now time.Time) {
	if s.waiting == 0 {
		return
	}
	s.advanceLocked(now)
	s.cancelLoadLocked(srv)
	for s.waiting > 0 && (srv.load == nil || srv.load.keepsServing) {
		if srv.draining == nil && srv.load == nil {
			srv.draining = s.changeLocked(srv, now)
		}
		if srv.draining != nil {
			if srv.inFlight > 0 && !srv.room(srv.draining.queue.model) {
				return
			}
			s.loadLocked(srv, now)
			continue
		}
		w := s.nextLocked(srv, now)
		if w == nil {
			return
		}
		s.grantWaiterLocked(w, srv, now)
	}
}

// nextLocked is the next request for srv, of all that want a model in its memory.
func (s *Scheduler) nextLocked(srv *serverState, now time.Time) *waiter {
	var best *waiter
	var first rank
	for _, q := range s.queues {
		if !srv.free(q.name.model) || !srv.warm(q.name) || !s.eligible(srv, q.name) {
			continue
		}
		if w, r := s.nextIn(q, srv.b, now); w != nil && precedes(w, r, best, first) {
			best, first = w, r
		}
	}
	return best
}

func (s *Scheduler) eligible(srv *serverState, name queueName) bool {
	return slices.Contains(s.fleet.Serving(name.model), srv.b) && !tooOld(srv.b, name.since)
}

// patience is how long a batch request lets interactive ones pass.
func (s *Scheduler) patience() time.Duration { return s.o.MaxWait / 4 }

// grantWaiterLocked grants w a slot of srv.
func (s *Scheduler) grantWaiterLocked(w *waiter, srv *serverState, now time.Time) {
	s.leaveLocked(w)
	s.deliverLocked(w, s.grantLocked(srv, w.payer, w.ask, w.arrived, now, ReasonLoaded), now)
}

// deliverLocked delivers the lease to w, which has left the queue.
func (s *Scheduler) deliverLocked(w *waiter, l *Lease, now time.Time) {
	l.Ahead = w.ahead
	w.lease = l
	close(w.ready)
	s.stopDrainsLocked(w.queue, now)
}

// room reports whether the backend's memory has room for one more model, as far as is known. Until a load has pushed a model out, the
// answer is true. A model that is already loaded with other options is replaced, so it needs no room but stops the backend.
func (srv *serverState) room(model string) bool {
	loaded := srv.b.State().Loaded
	return loaded != nil && !srv.holds(model) && (srv.fits == 0 || len(loaded) < srv.fits)
}

// drain is a change of model that a backend drains for.
type drain struct {
	queue   queueName
	request *waiter // the request that causes it
	since   time.Time
	work    time.Duration // the backend's work when the drain began
	slots   int           // the slots of the models that it had then
}

// modelLoad is a load of a model on a backend.
type modelLoad struct {
	drain
	cancel       context.CancelFunc
	keepsServing bool              // the backend serves its other models during the load
	stops        bool              // there was no room: the load stopped the backend for all requests
	before       map[string]string // the models that it had, and their load-time options if known
	began        time.Time
	share        time.Duration // the backend's share when the load began
	lent         time.Duration // the backend's time that requests had while they waited in Ollama for the load
	booked       time.Duration // the backend's time that was booked with its request, which has left
}
