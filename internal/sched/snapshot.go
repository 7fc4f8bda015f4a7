package sched

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Snapshot is how busy the scheduler is.
type Snapshot struct {
	InFlight int            `json:"in_flight"`
	Waiting  int            `json:"waiting"`
	Limit    int            `json:"limit"` // of Waiting
	ByModel  map[string]int `json:"by_model"`
	// ByBackend is the number of requests and loads in flight on each server.
	ByBackend map[string]int `json:"by_backend"`
	// ByClass is the number of waiting requests of each class.
	ByClass map[string]int `json:"by_class"`
}

// Snapshot counts the requests that are in flight and those that wait.
func (s *Scheduler) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Snapshot{
		Waiting: s.waiting, Limit: s.o.MaxQueue,
		ByModel: make(map[string]int), ByBackend: make(map[string]int), ByClass: map[string]int{"interactive": 0, "batch": 0},
	}
	for _, srv := range s.servers {
		if srv.inFlight > 0 {
			out.ByBackend[srv.b.Name] += srv.inFlight
		}
		for model, st := range srv.models {
			if st.inFlight > 0 {
				out.InFlight += st.inFlight
				out.ByModel[model] += st.inFlight
			}
		}
	}
	for name, q := range s.queues {
		out.ByModel[name.model] += 0 // adds the model if no request runs
		for w := range q.all() {
			out.ByClass[w.class()]++
		}
	}
	return out
}

func (w *waiter) class() string {
	if w.ask.Batch {
		return "batch"
	}
	return "interactive"
}

// ModelStatus is a model on a backend that is in its memory, being loaded, or in use.
type ModelStatus struct {
	Backend, Model string
	InFlight       int // slots in use
	Slots          int // the set number of slots, or the measured one
	Loaded         bool
	Loading        bool
}

// Models returns the models of all backends, sorted by the names of backend and model.
func (s *Scheduler) Models() []ModelStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []ModelStatus
	for _, b := range s.fleet.All() {
		srv := s.serverLocked(b)
		models := make(map[string]bool)
		for model := range b.State().Loaded {
			models[model] = true
		}
		for model, st := range srv.models {
			if st.inFlight > 0 {
				models[model] = true
			}
		}
		loading := ""
		if srv.load != nil {
			loading = srv.load.queue.model
			models[loading] = true
		}
		for model := range models {
			st := srv.models[model]
			if st == nil {
				st = &modelState{model: model, found: firstSlots}
			}
			_, loaded := b.State().Loaded[model]
			all = append(all, ModelStatus{b.Name, model, st.slots, srv.limit(st), loaded, model == loading})
		}
	}
	slices.SortFunc(all, func(a, b ModelStatus) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Model, b.Model))
	})
	return all
}

func (s *Scheduler) waitingForLocked(model string) int {
	n := 0
	for name, q := range s.queues {
		if name.model == model {
			n += q.n
		}
	}
	return n
}

// expectedLocked estimates how long a request waits for a slot, from the measured time for which slots are held: one second to an hour.
// turns is the number of requests until then, itself included.
func (s *Scheduler) expectedLocked(model string, turns int) time.Duration {
	rate, cold := 0.0, defaultLoad // slots per second
	for _, b := range s.fleet.Serving(model) {
		srv := s.serverLocked(b)
		st := srv.models[model]
		if !srv.has(model) || st == nil {
			cold = min(cold, srv.changing(model))
			continue
		}
		rate += float64(srv.limit(st)) / max(st.usual(s.holds.median).Seconds(), 0.001)
	}
	wait := cold.Seconds()
	if rate > 0 {
		wait = float64(turns) / rate
	}
	return min(max(time.Duration(math.Ceil(wait))*time.Second, time.Second), time.Hour)
}

// QueueEntry is one request in the queue.
type QueueEntry struct {
	ID       string
	Key      string
	Model    string
	Class    string
	Waited   time.Duration
	Position int // its place in the order as it is now; 1 is next
	Expected time.Duration
}

// Queue lists the waiting requests of each model in their order as it is now: within a class, the first request of every key comes before
// the second of any.
func (s *Scheduler) Queue() []QueueEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var all []QueueEntry
	for name, q := range s.queues {
		for i, w := range q.inTurn() {
			all = append(all, QueueEntry{
				ID: w.ask.ID, Key: w.ask.Key, Model: name.model, Class: w.class(), Waited: now.Sub(w.arrived), Position: i + 1,
				Expected: s.expectedLocked(name.model, i+1),
			})
		}
	}
	slices.SortFunc(all, func(a, b QueueEntry) int {
		if a.Model != b.Model {
			if a.Model < b.Model {
				return -1
			}
			return 1
		}
		return a.Position - b.Position
	})
	return all
}

// inTurn lists the waiting requests in their order, if no other request arrives and each runs as long as its key's requests usually do.
func (q *modelQueue) inTurn() []*waiter {
	type turn struct {
		w     *waiter
		class int
		due   float64 // the counter that its key will have when it is next
	}
	var list []turn
	for e := q.retries.Front(); e != nil; e = e.Next() {
		list = append(list, turn{w: e.Value.(*waiter), class: -1})
	}
	for class := range q.byClass {
		for _, k := range q.byClass[class] {
			due := k.payer.counter
			for e := k.waiters.Front(); e != nil; e = e.Next() {
				list = append(list, turn{e.Value.(*waiter), class, due})
				due += float64(max(k.payer.mean, time.Second)) / k.payer.weight
			}
		}
	}
	slices.SortFunc(list, func(a, b turn) int {
		switch {
		case a.class != b.class:
			return a.class - b.class
		case a.due < b.due:
			return -1
		case a.due > b.due:
			return 1
		}
		return int(a.w.order) - int(b.w.order)
	})
	out := make([]*waiter, len(list))
	for i, t := range list {
		out[i] = t.w
	}
	return out
}
