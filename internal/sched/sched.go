// Package sched says who goes next and where: a slot on a backend and the turn to use it are taken in one step.
//
// Ollama queues requests for a loaded model without bound and without telling anyone (docs/ollama-contract, section 3), so
// no more than its slots are ever in flight there, and the rest waits here: first come, first served, bounded in number
// and in time.
package sched

import (
	"container/list"
	"context"
	"math"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
)

// Scheduler hands out the slots of one backend, per model.
type Scheduler struct {
	backend  *backend.Backend
	maxQueue int
	maxWait  time.Duration

	mu       sync.Mutex
	lanes    map[string]*lane
	inFlight int // of all lanes
	waiting  int
	service  time.Duration // moving average of how long a slot is held
	// share is what a lease that was there from the start would have of the backend: the integral of one over inFlight, as of shared.
	share  time.Duration
	shared time.Time
}

// lane is one model's slots and those who wait for them.
type lane struct {
	inFlight int
	waiters  list.List // of *waiter
}

type waiter struct {
	granted bool
	share   time.Duration // of the scheduler, when it was granted
	ready   chan struct{} // closed when granted
}

// New schedules for b: at most maxQueue requests wait in all, none longer than maxWait.
func New(b *backend.Backend, maxQueue int, maxWait time.Duration) *Scheduler {
	return &Scheduler{backend: b, maxQueue: maxQueue, maxWait: maxWait, lanes: make(map[string]*lane)}
}

// Lease is a slot in use. Release it always. A Lease that no Scheduler made holds none, for requests that need none.
type Lease struct {
	Backend *backend.Backend
	// Waited is how long the request stood in the queue.
	Waited time.Duration

	sched    *Scheduler
	model    string
	taken    time.Time
	share    time.Duration // of the scheduler, when it was taken
	released bool
	held     time.Duration
	used     time.Duration
}

// Acquire waits for a slot for model, at the longest until deadline (zero: the scheduler's own bound alone). It returns
// CodeQueueFull or CodeQueueTimeout with the time after which a try makes sense, or CodeClientGone where ctx ended first.
func (s *Scheduler) Acquire(ctx context.Context, model string, deadline time.Time) (*Lease, error) {
	start := time.Now()
	s.mu.Lock()
	l := s.lanes[model]
	if l == nil {
		l = &lane{}
		s.lanes[model] = l
	}
	if l.inFlight < s.backend.Slots && l.waiters.Len() == 0 {
		s.countLocked(start, 1)
		l.inFlight++
		share := s.share
		s.mu.Unlock()
		return &Lease{Backend: s.backend, sched: s, model: model, taken: start, share: share}, nil
	}
	if s.waiting >= s.maxQueue {
		wait := s.expectedWaitLocked(l)
		s.mu.Unlock()
		return nil, &api.Error{
			Code: api.CodeQueueFull, RetryAfter: wait, NoRetry: wait > 30*time.Second,
			Message: "all slots are busy and the queue is full: try again later",
		}
	}
	w := &waiter{ready: make(chan struct{})}
	place := l.waiters.PushBack(w)
	s.waiting++
	s.mu.Unlock()

	wait := s.maxWait
	if !deadline.IsZero() {
		wait = max(0, min(wait, deadline.Sub(start)))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err *api.Error
	select {
	case <-w.ready:
	case <-ctx.Done():
		err = api.Wrap(api.CodeClientGone, ctx.Err(), "the client went away")
	case <-timer.C:
		err = api.Errorf(api.CodeQueueTimeout, "no slot became free within %s: try again later", wait.Round(time.Second))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A grant may have crossed with the end of the wait: then the slot is ours, and goes back if we no longer want it.
	if err == nil {
		now := time.Now()
		return &Lease{Backend: s.backend, Waited: now.Sub(start), sched: s, model: model, taken: now, share: w.share}, nil
	}
	if w.granted {
		s.releaseLocked(model, time.Now())
	} else {
		l.waiters.Remove(place)
		s.waiting--
		s.forgetLocked(model, l)
	}
	if err.Code == api.CodeQueueTimeout {
		err.RetryAfter = s.expectedWaitLocked(l)
		err.NoRetry = err.RetryAfter > 30*time.Second
	}
	return nil, err
}

// Release gives the slot to who waits longest, and returns how long it was held. A second call changes nothing.
func (l *Lease) Release() time.Duration {
	if l.released || l.sched == nil {
		return l.held
	}
	l.released = true
	now := time.Now()
	l.held = now.Sub(l.taken)
	s := l.sched
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked(now, 0)
	l.used = s.share - l.share
	if s.service == 0 {
		s.service = l.held
	} else {
		s.service += (l.held - s.service) / 16
	}
	s.releaseLocked(l.model, now)
	return l.held
}

// GPU is the lease's part of the backend's time, so far or until Release: of each instant, one part of as many as there were
// leases in flight on the backend. So the parts of all leases never add up to more than the time that passed.
func (l *Lease) GPU() time.Duration {
	if l.released || l.sched == nil {
		return l.used
	}
	s := l.sched
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked(time.Now(), 0)
	return s.share - l.share
}

// countLocked brings share up to now, and then changes inFlight by more. Division rounds down, so that the parts stay below
// the whole. Of two that took their time before the lock, the earlier may come later: time does not go back for it.
func (s *Scheduler) countLocked(now time.Time, more int) {
	if passed := now.Sub(s.shared); passed > 0 {
		if s.inFlight > 0 {
			s.share += passed / time.Duration(s.inFlight)
		}
		s.shared = now
	}
	s.inFlight += more
}

func (s *Scheduler) releaseLocked(model string, now time.Time) {
	l := s.lanes[model]
	if first := l.waiters.Front(); first != nil {
		w := l.waiters.Remove(first).(*waiter)
		s.waiting--
		w.granted = true // the slot passes on: inFlight stays
		s.countLocked(now, 0)
		w.share = s.share
		close(w.ready)
		return
	}
	s.countLocked(now, -1)
	l.inFlight--
	s.forgetLocked(model, l)
}

// forgetLocked drops a lane nobody uses: clients choose the names of models.
func (s *Scheduler) forgetLocked(model string, l *lane) {
	if l.inFlight == 0 && l.waiters.Len() == 0 {
		delete(s.lanes, model)
	}
}

// expectedWaitLocked is when a slot may be free for one who comes now, from the measured time a slot is held: 1 s to an hour.
func (s *Scheduler) expectedWaitLocked(l *lane) time.Duration {
	turns := float64(l.waiters.Len()+1) / float64(s.backend.Slots)
	wait := time.Duration(math.Ceil(turns*s.service.Seconds())) * time.Second
	return min(max(wait, time.Second), time.Hour)
}

// Snapshot is how busy the scheduler is.
type Snapshot struct {
	InFlight int            `json:"in_flight"`
	Waiting  int            `json:"waiting"`
	Limit    int            `json:"limit"` // of those that wait
	ByModel  map[string]int `json:"by_model"`
}

// Snapshot counts what is in flight and what waits.
func (s *Scheduler) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Snapshot{Waiting: s.waiting, Limit: s.maxQueue, ByModel: make(map[string]int, len(s.lanes))}
	for model, l := range s.lanes {
		out.InFlight += l.inFlight
		out.ByModel[model] = l.inFlight
	}
	return out
}
