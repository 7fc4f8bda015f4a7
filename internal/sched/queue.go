package sched

import (
	"cmp"
	"container/heap"
	"container/list"
	"iter"
	"time"

	"ollama-api-service/internal/backend"
)

// client is a payer as the queue sees it: how much it has been served.
type client struct {
	payer   string
	weight  float64
	counter float64 // nanoseconds of slots, over the weight: the lowest goes next
	held    float64 // the part of counter for what runs now, expected or had
	running int
	waiting int
	lines   []*line       // those in which it waits
	mean    time.Duration // moving average of how long it holds a slot
	owed    float64       // on top of counter, for changes that it left behind
	barred  time.Time     // until when it causes no change that others would notice
	debt    time.Duration // of backends, for loads that it has caused and that are on no row yet: its next request is booked that
}

// lift brings the counter to that of the others when the payer returns with nothing waiting: service that it left unused is gone.
func (c *client) lift(lowest float64) {
	if c.waiting == 0 {
		c.pay(lowest)
		c.counter = max(c.counter, lowest)
	}
}

// pay turns what is owed into service had, as far as others have had more since.
func (c *client) pay(lowest float64) {
	paid := min(c.owed, max(0, lowest-c.counter))
	c.owed -= paid
	c.counter += paid
}

// due is where the payer is in the order of turns: the lowest goes next.
func (c *client) due() float64 { return c.counter + c.owed }

// settle takes over what the payer has caused of backends' time and no row has.
func (c *client) settle() time.Duration {
	d := c.debt
	c.debt = 0
	return d
}

// changesForLocked reports whether a backend changes its model for the payer.
func (s *Scheduler) changesForLocked(c *client) bool {
	for _, p := range s.places {
		if p.turning != nil && p.turning.request.client == c || p.load != nil && p.load.request.client == c {
			return true
		}
	}
	return false
}

// newestBatch is the batch request of the payer that came last, or nil.
func (c *client) newestBatch() *waiter {
	var newest *waiter
	for _, l := range c.lines {
		if w := l.waiters.Back().Value.(*waiter); l.batch && (newest == nil || w.order > newest.order) {
			newest = w
		}
	}
	return newest
}

// charge adds d of service, which may be negative.
func (c *client) charge(d time.Duration) {
	c.counter += float64(d) / c.weight
	for _, l := range c.lines {
		heap.Fix(&l.lane.turns[l.class], l.index)
	}
}

// laneName is a model, the load-time options that it is wanted with, and the version that its requests need. Requests that the same
// backends may serve without a change wait together.
type laneName struct{ model, options, since string }

func (a *Ask) lane() laneName { return laneName{a.Model, string(a.Options), a.Since} }

// Classes of turns, in their order. A line of batch requests is in the interactive class while its first request is aged.
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
	// retries have had their turn and lost it to a failure. young are the batch requests that are not aged, in the order they came.
	retries, young list.List
}

// line is the requests of one payer for one model, interactive or batch: first come, first served.
type line struct {
	lane    *lane
	client  *client
	batch   bool
	class   int // the heap of the lane that it is in
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
	young   *list.Element // among the lane's young; nil if it is aged or interactive
	ahead   int           // how many waited for the model when it came
	lease   *Lease        // when it was granted
	left    *Lease        // what it has cost, if it left while its model was loaded for it
	err     error         // when it will never be
	ready   chan struct{} // closed at either
	wants   []*place      // that may serve it
}

// turns are the lines of a class, the lowest counter first.
type turns []*line

func (t turns) Len() int { return len(t) }
func (t turns) Less(i, j int) bool {
	if a, b := t[i].client.due(), t[j].client.due(); a != b {
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
	payer := cmp.Or(a.Payer, a.Key)
	c := s.clients[payer]
	if c == nil {
		c = &client{payer: payer}
		s.clients[payer] = c
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

// sweepLocked drops payers that do nothing and owe nothing, each time there are twice as many as the last sweep left.
func (s *Scheduler) sweepLocked() {
	if len(s.clients) < 2*s.swept+64 {
		return
	}
	now := time.Now()
	for name, c := range s.clients {
		c.pay(s.virtual)
		if c.running == 0 && c.waiting == 0 && c.weight > 0 && c.owed == 0 && c.debt == 0 && now.After(c.barred) && !s.changesForLocked(c) {
			delete(s.clients, name)
		}
	}
	s.swept = len(s.clients)
}

// lowestLocked is the service of the payer that goes next, without the part that is only expected of its running requests: they may
// take much less. If no request waits, it is that of the payer that went last. Batch requests count only where no interactive one
// waits: their counters stand still while they are passed over, and would give each payer that comes a lead over those that wait.
func (s *Scheduler) lowestLocked() float64 {
	for class := range classes {
		var next *client
		for _, l := range s.lanes {
			if t := l.turns[class]; len(t) > 0 && (next == nil || t[0].client.due() < next.due()) {
				next = t[0].client
			}
		}
		if next != nil {
			return next.counter - next.held
		}
	}
	return s.virtual
}

func (s *Scheduler) enqueueLocked(c *client, a *Ask, now time.Time) *waiter {
	name := a.lane()
	l := s.lanes[name]
	if l == nil {
		l = &lane{name: name}
		s.lanes[name] = l
	}
	c.lift(s.lowestLocked())
	s.arrivals++
	w := &waiter{ask: a, client: c, lane: l, arrived: now, order: s.arrivals, ahead: l.n, ready: make(chan struct{})}
	for _, b := range s.fleet.Serving(a.Model) {
		p := s.placeLocked(b)
		w.wants = append(w.wants, p)
		p.want.count(c, 1, now)
	}
	s.waiting++
	c.waiting++
	l.n++
	if a.Avoid != nil {
		w.place = l.retries.PushBack(w)
		return w
	}
	if a.Batch {
		w.young = l.young.PushBack(w)
	}
	for _, own := range c.lines {
		if own.lane == l && own.batch == a.Batch {
			w.line = own
			w.place = own.waiters.PushBack(w)
			return w
		}
	}
	w.line = &line{lane: l, client: c, batch: a.Batch, class: interactive}
	if a.Batch {
		w.line.class = batch
	}
	w.place = w.line.waiters.PushBack(w)
	c.lines = append(c.lines, w.line)
	heap.Push(&l.turns[w.line.class], w.line)
	return w
}

// move puts a line into another class.
func (l *line) move(class int) {
	heap.Remove(&l.lane.turns[l.class], l.index)
	l.class = class
	heap.Push(&l.lane.turns[class], l)
}

// ageLocked has batch requests that have waited for long compete with interactive ones, by the counter of their payer. It begins at that
// of the payer that goes next: a payer that was passed over would otherwise have every slot until it has caught up.
func (s *Scheduler) ageLocked(l *lane, now time.Time) {
	for e := l.young.Front(); e != nil; e = l.young.Front() {
		w := e.Value.(*waiter)
		if now.Sub(w.arrived) < s.patience() {
			return
		}
		l.young.Remove(e)
		w.young = nil
		if w.line.class == batch && w.line.first() == w {
			w.line.ageLocked(s.lowestLocked())
		}
	}
}

func (l *line) ageLocked(lowest float64) {
	if c := l.client; c.due() < lowest {
		c.charge(time.Duration((lowest - c.due()) * c.weight))
	}
	l.move(interactive)
}

// leaveLocked takes w out of the queue.
func (s *Scheduler) leaveLocked(w *waiter) {
	l, c := w.lane, w.client
	for _, p := range w.wants {
		p.want.count(c, -1, time.Now())
	}
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
	if w.young != nil {
		l.young.Remove(w.young)
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
	case first && w.line.batch && w.line.class == interactive && w.line.first().young != nil:
		w.line.move(batch)
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
	inTurn
	leftOver
)

// nextIn is the request that goes next in the lane on b, or nil if all that wait must not go there.
func (s *Scheduler) nextIn(l *lane, b *backend.Backend, now time.Time) (*waiter, rank) {
	for e := l.retries.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.ask.Avoid != b {
			return w, afterFailure
		}
	}
	s.ageLocked(l, now)
	if first := l.turns[interactive]; len(first) > 0 {
		return first[0].first(), inTurn
	}
	if others := l.turns[batch]; len(others) > 0 {
		return others[0].first(), leftOver
	}
	return nil, leftOver
}

// causeIn is the request in the lane for which b may change its model: the one that goes next of those whose payers are not barred.
func (s *Scheduler) causeIn(l *lane, b *backend.Backend, now time.Time) (*waiter, rank) {
	first, r := s.nextIn(l, b, now)
	if first == nil || !now.Before(first.client.barred) {
		return first, r
	}
	first = nil
	for class := range l.turns {
		for _, line := range l.turns[class] {
			if w := line.first(); !now.Before(w.client.barred) && before(w, inTurn, first, inTurn) {
				first = w
			}
		}
		if first != nil {
			return first, inTurn + rank(class)
		}
	}
	return nil, leftOver
}

// before reports whether w goes before o.
func before(w *waiter, r rank, o *waiter, than rank) bool {
	switch {
	case o == nil:
		return true
	case r != than:
		return r < than
	case r != afterFailure && w.client.due() != o.client.due():
		return w.client.due() < o.client.due()
	}
	return w.order < o.order
}
