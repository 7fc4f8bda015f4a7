package sched

import (
	"container/heap"
	"container/list"
	"iter"
	"time"

	"ollama-api-service/internal/backend"
)

// client is a key as the queue sees it: how much it has been served.
type client struct {
	name    string
	weight  float64
	counter float64 // nanoseconds of slots, over the weight: the lowest goes next
	held    float64 // the part of counter for what runs now, expected or had
	running int
	waiting int
	lines   []*line       // those in which it waits
	mean    time.Duration // moving average of how long it holds a slot
}

// lift brings a counter to that of the others when its key comes back with nothing waiting: what it left unused is gone, and what
// it used while nobody wanted it is forgiven, but for what it has in its hands.
func (c *client) lift(lowest float64) {
	if c.waiting == 0 {
		c.counter = min(max(c.counter, lowest), lowest+c.held)
	}
}

// charge adds d of service, which may be negative.
func (c *client) charge(d time.Duration) {
	c.counter += float64(d) / c.weight
	for _, l := range c.lines {
		heap.Fix(&l.lane.turns[l.class], l.index)
	}
}

// laneName is a model, and the version that its requests need: requests that the same backends may serve wait together.
type laneName struct{ model, since string }

// Classes of requests, in the order of their turns.
const (
	interactive = iota
	batch
	classes
)

// lane is the queue for one model.
type lane struct {
	name  laneName
	n     int
	turns [classes]turns
	// retries have had their turn and lost it to a failure; olds are the batch requests as they came.
	retries, olds list.List
	aged          bool // the last turn went to an old batch request
}

// line is the requests of one key for one model in one class: first come, first served.
type line struct {
	lane    *lane
	client  *client
	class   int
	waiters list.List
	index   int // in the heap
}

type waiter struct {
	ask     *Ask
	client  *client
	lane    *lane
	line    *line // nil for a retry
	arrived time.Time
	order   uint64
	place   *list.Element // in its line, or among the retries; nil when it has left
	old     *list.Element // among the lane's olds
	ahead   int           // how many waited for the model when it came
	lease   *Lease        // when it was granted
	err     error         // when it will never be
	ready   chan struct{} // closed at either
}

// turns are the lines of a class, the lowest counter first.
type turns []*line

func (t turns) Len() int { return len(t) }
func (t turns) Less(i, j int) bool {
	if a, b := t[i].client.counter, t[j].client.counter; a != b {
		return a < b
	}
	return t[i].first().order < t[j].first().order
}

func (t turns) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push is heap's.
func (t *turns) Push(x any) {
	l := x.(*line)
	l.index = len(*t)
	*t = append(*t, l)
}

// Pop is heap's.
func (t *turns) Pop() any {
	old := *t
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return l
}

func (l *line) first() *waiter { return l.waiters.Front().Value.(*waiter) }

func (s *Scheduler) clientLocked(a *Ask) *client {
	c := s.clients[a.Key]
	if c == nil {
		c = &client{name: a.Key}
		s.clients[a.Key] = c
		s.sweepLocked()
	}
	weight := a.Weight
	if weight <= 0 {
		weight = 1
	}
	if weight != c.weight {
		if c.weight > 0 {
			c.held *= c.weight / weight
		}
		c.weight = weight
	}
	return c
}

// sweepLocked drops keys that do nothing, each time there are twice as many as the last sweep left.
func (s *Scheduler) sweepLocked() {
	if len(s.clients) < 2*s.swept+64 {
		return
	}
	for name, c := range s.clients {
		if c.running == 0 && c.waiting == 0 && c.weight > 0 {
			delete(s.clients, name)
		}
	}
	s.swept = len(s.clients)
}

// lowestLocked is what the key that goes next has been served, or who went last where nobody waits: without what is only expected
// of its requests that run, which may come to much less.
func (s *Scheduler) lowestLocked() float64 {
	var next *client
	for _, l := range s.lanes {
		for class := range l.turns {
			if t := l.turns[class]; len(t) > 0 && (next == nil || t[0].client.counter < next.counter) {
				next = t[0].client
			}
		}
	}
	if next == nil {
		return s.virtual
	}
	return next.counter - next.held
}

func (s *Scheduler) enqueueLocked(c *client, a *Ask, now time.Time) *waiter {
	name := laneName{a.Model, a.Since}
	l := s.lanes[name]
	if l == nil {
		l = &lane{name: name}
		s.lanes[name] = l
	}
	c.lift(s.lowestLocked())
	s.arrivals++
	w := &waiter{ask: a, client: c, lane: l, arrived: now, order: s.arrivals, ahead: l.n, ready: make(chan struct{})}
	s.waiting++
	c.waiting++
	l.n++
	if a.Avoid != nil {
		w.place = l.retries.PushBack(w)
		return w
	}
	class := interactive
	if a.Batch {
		class = batch
		w.old = l.olds.PushBack(w)
	}
	for _, own := range c.lines {
		if own.lane == l && own.class == class {
			w.line = own
			w.place = own.waiters.PushBack(w)
			return w
		}
	}
	w.line = &line{lane: l, client: c, class: class}
	w.place = w.line.waiters.PushBack(w)
	c.lines = append(c.lines, w.line)
	heap.Push(&l.turns[class], w.line)
	return w
}

// leaveLocked takes w out of the queue.
func (s *Scheduler) leaveLocked(w *waiter) {
	l, c := w.lane, w.client
	s.waiting--
	c.waiting--
	if l.n--; l.n == 0 {
		delete(s.lanes, l.name) // clients choose the names of models
	}
	place := w.place
	w.place = nil
	if w.line == nil {
		l.retries.Remove(place)
		return
	}
	if w.old != nil {
		l.olds.Remove(w.old)
	}
	first := w.line.waiters.Front() == place
	w.line.waiters.Remove(place)
	switch {
	case w.line.waiters.Len() == 0:
		heap.Remove(&l.turns[w.line.class], w.line.index)
		for i, own := range c.lines {
			if own == w.line {
				c.lines = append(c.lines[:i], c.lines[i+1:]...)
				break
			}
		}
	case first:
		heap.Fix(&l.turns[w.line.class], w.line.index)
	}
}

// all are those who wait in the lane; the caller may take out each that it is given.
func (l *lane) all() iter.Seq[*waiter] {
	var list []*waiter
	for e := l.retries.Front(); e != nil; e = e.Next() {
		list = append(list, e.Value.(*waiter))
	}
	for class := range l.turns {
		for _, line := range l.turns[class] {
			for e := line.waiters.Front(); e != nil; e = e.Next() {
				list = append(list, e.Value.(*waiter))
			}
		}
	}
	return func(yield func(*waiter) bool) {
		for _, w := range list {
			if !yield(w) {
				return
			}
		}
	}
}

// rank is the order of turns before the counters are asked.
type rank int

const (
	afterFailure rank = iota // it had its turn
	agedBatch
	inTurn
	leftOver
)

// next is whose turn it is in the lane on b: nobody's where all that wait must not go there.
func (l *lane) next(b *backend.Backend, now time.Time, patience time.Duration) (*waiter, rank) {
	for e := l.retries.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.ask.Avoid != b {
			return w, afterFailure
		}
	}
	people := l.turns[interactive]
	if e := l.olds.Front(); e != nil && (len(people) == 0 || !l.aged) {
		if w := e.Value.(*waiter); now.Sub(w.arrived) >= patience {
			return w.line.first(), agedBatch
		}
	}
	if len(people) > 0 {
		return people[0].first(), inTurn
	}
	if others := l.turns[batch]; len(others) > 0 {
		return others[0].first(), leftOver
	}
	return nil, leftOver
}

// before says whether w has its turn before o.
func before(w *waiter, r rank, o *waiter, than rank) bool {
	switch {
	case o == nil:
		return true
	case r != than:
		return r < than
	case r == inTurn || r == leftOver:
		if w.client.counter != o.client.counter {
			return w.client.counter < o.client.counter
		}
	}
	return w.order < o.order
}
