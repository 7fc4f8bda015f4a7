package sched

import (
	"cmp"
	"container/heap"
	"container/list"
	"iter"
	"time"

	"ollama-api-service/internal/backend"
)

// client is a payer in the queue, with the service that it has had.
type client struct {
	payer   string
	weight  float64
	counter float64 // slot time in nanoseconds, divided by the weight: the payer with the lowest is next
	held    float64 // the part of counter for running requests, expected or already used
	running int
	waiting int
	lines   []*line       // the queues of its waiting requests
	mean    time.Duration // moving average of how long it holds a slot
	owed    float64       // in addition to counter, for changes that it caused and left
	barred  time.Time     // until then it may not cause a change that affects others
	debt    time.Duration // backends' time for loads that it caused and that have no row yet: it is booked with its next request
}

// lift raises the counter to that of the others when the payer returns with no request waiting: unused service is not saved up.
func (c *client) lift(lowest float64) {
	if c.waiting == 0 {
		c.pay(lowest)
		c.counter = max(c.counter, lowest)
	}
}

// pay moves debt from owed to counter, as far as other payers have had more service since.
func (c *client) pay(lowest float64) {
	paid := min(c.owed, max(0, lowest-c.counter))
	c.owed -= paid
	c.counter += paid
}

// due is the payer's place in the order: the lowest is next.
func (c *client) due() float64 { return c.counter + c.owed }

// settle returns the payer's debt and clears it.
func (c *client) settle() time.Duration {
	d := c.debt
	c.debt = 0
	return d
}

// changesForLocked reports whether a backend drains or loads for the payer.
func (s *Scheduler) changesForLocked(c *client) bool {
	for _, p := range s.places {
		if p.turning != nil && p.turning.request.client == c || p.load != nil && p.load.request.client == c {
			return true
		}
	}
	return false
}

// newestBatch is the payer's batch request that arrived last, or nil.
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

// laneName identifies a queue: a model, its load-time options, and the version of Ollama that the requests need. Requests that the same
// backends can serve without a change wait in one queue.
type laneName struct{ model, options, since string }

func (a *Ask) lane() laneName { return laneName{a.Model, string(a.Options), a.Since} }

// Classes, in the order in which they are served. A queue of batch requests is in the interactive class while its first request is aged.
const (
	interactive = iota
	batch
	classes
)

// lane holds the waiting requests for one model with one set of load-time options.
type lane struct {
	name  laneName
	n     int
	turns [classes]turns
	// retries are requests that were scheduled before and whose backend failed. young are the batch requests that are not aged, in the order
	// of their arrival.
	retries, young list.List
}

// line holds the requests of one payer in a lane, either its interactive or its batch ones: first come, first served.
type line struct {
	lane    *lane
	client  *client
	batch   bool
	class   int // which heap of the lane has it
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
	place   *list.Element // in its line, or in the lane's retries; nil when it has left
	young   *list.Element // in the lane's young; nil if it is aged or interactive
	ahead   int           // the number of requests that waited for the model when it arrived
	lease   *Lease        // set when it is granted
	left    *Lease        // its cost, if it left while its model was being loaded for it
	err     error         // set when it is refused
	ready   chan struct{} // closed when lease or err is set
	wants   []*place      // the servers that may serve it
}

// turns is a heap of the lines of a class, the lowest counter first.
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

// Push implements heap.Interface.
func (t *turns) Push(x any) {
	l := x.(*line)
	l.index = len(*t)
	*t = append(*t, l)
}

// Pop implements heap.Interface.
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

// sweepLocked drops payers without requests and debts. It runs when there are twice as many payers as the last sweep left.
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

// lowestLocked is the counter of the payer that is next, without the part for its running requests: that part is partly expected, and they
// may take much less. If no request waits, it is the counter of the payer that was scheduled last. Batch requests count only if no
// interactive one waits: their counters do not change while they are passed over, and would give each new payer a lead over waiting ones.
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

// ageLocked moves batch requests that have waited for long to the interactive class. Their payer's counter starts at that of the payer that
// is next. Otherwise a payer that was passed over would get every slot until its counter reaches those of the others.
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

// leaveLocked removes w from the queue.
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

// all iterates over the waiting requests. The caller may remove the request that it has just got.
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

// rank is the order of requests before counters are compared.
type rank int

const (
	afterFailure rank = iota // it was scheduled before
	inTurn
	leftOver
)

// nextIn is the next request of l for b, or nil if no waiting request may run there.
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

// causeIn is the request of l for which b may change its model: the next one whose payer is not barred.
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

// before reports whether w is scheduled before o.
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
