package sched

import (
	"cmp"
	"container/heap"
	"container/list"
	"iter"
	"time"

	"ollama-api-service/internal/backend"
)

// payerState is a payer with the service that it has had.
type payerState struct {
	name        string
	weight      float64
	counter     float64 // slot time in nanoseconds, divided by the weight: the payer with the lowest is next
	held        float64 // the part of counter for running requests, expected or already used
	running     int
	waiting     int
	queues      []*keyQueue   // the queues of its waiting requests
	mean        time.Duration // moving average of how long it holds a slot
	owed        float64       // in addition to counter, for changes that it caused and left
	barredUntil time.Time     // until then it may not cause a change that affects others
	debt        time.Duration // backends' time for loads that it caused and that have no row yet: it is booked with its next request
}

// lift raises the counter to that of the others when the payer returns with no request waiting: unused service is not saved up.
func (c *payerState) lift(lowest float64) {
	if c.waiting == 0 {
		c.pay(lowest)
		c.counter = max(c.counter, lowest)
	}
}

// pay moves debt from owed to counter, as far as other payers have had more service since.
func (c *payerState) pay(lowest float64) {
	paid := min(c.owed, max(0, lowest-c.counter))
	c.owed -= paid
	c.counter += paid
}

// due is the payer's place in the order: the lowest is next.
func (c *payerState) due() float64 { return c.counter + c.owed }

// takeDebt returns the payer's debt and clears it.
func (c *payerState) takeDebt() time.Duration {
	d := c.debt
	c.debt = 0
	return d
}

// changesForLocked reports whether a backend drains or loads for the payer.
func (s *Scheduler) changesForLocked(c *payerState) bool {
	for _, srv := range s.servers {
		if srv.draining != nil && srv.draining.request.payer == c || srv.load != nil && srv.load.request.payer == c {
			return true
		}
	}
	return false
}

// newestBatch is the payer's batch request that arrived last, or nil.
func (c *payerState) newestBatch() *waiter {
	var newest *waiter
	for _, k := range c.queues {
		if w := k.waiters.Back().Value.(*waiter); k.batch && (newest == nil || w.order > newest.order) {
			newest = w
		}
	}
	return newest
}

// charge adds d of service, which may be negative.
func (c *payerState) charge(d time.Duration) {
	c.counter += float64(d) / c.weight
	for _, k := range c.queues {
		heap.Fix(&k.queue.byClass[k.class], k.index)
	}
}

// queueName identifies a queue: a model, its load-time options, and the version of Ollama that the requests need. Requests that the same
// backends can serve without a change wait in one queue.
type queueName struct{ model, options, since string }

func (a *Ask) queueName() queueName { return queueName{a.Model, string(a.Options), a.Since} }

// Classes, in the order in which they are served. A queue of batch requests is in the interactive class while its first request is aged.
const (
	interactive = iota
	batch
	classes
)

// modelQueue holds the waiting requests for one model with one set of load-time options.
type modelQueue struct {
	name    queueName
	n       int
	byClass [classes]keyHeap
	// retries are requests that were scheduled before and whose backend failed. unaged are the batch requests that are not aged, in the order
	// of their arrival.
	retries, unaged list.List
}

// keyQueue holds the requests of one payer in a modelQueue, either its interactive or its batch ones: first come, first served.
type keyQueue struct {
	queue   *modelQueue
	payer   *payerState
	batch   bool
	class   int // which heap of queue has it
	waiters list.List
	index   int // in the heap
}

type waiter struct {
	ask      *Ask
	payer    *payerState
	queue    *modelQueue
	keyQueue *keyQueue // nil for a retry
	arrived  time.Time
	order    uint64
	element  *list.Element  // in its keyQueue, or in the retries of queue; nil when it has left
	unaged   *list.Element  // in unaged of queue; nil if it is aged or interactive
	ahead    int            // the number of requests that waited for the model when it arrived
	lease    *Lease         // set when it is granted
	left     *Lease         // its cost, if it left while its model was being loaded for it
	err      error          // set when it is refused
	ready    chan struct{}  // closed when lease or err is set
	servers  []*serverState // the servers that may serve it
}

// keyHeap is a heap of the queues of a class, the lowest counter first.
type keyHeap []*keyQueue

func (h keyHeap) Len() int { return len(h) }
func (h keyHeap) Less(i, j int) bool {
	if a, b := h[i].payer.due(), h[j].payer.due(); a != b {
		return a < b
	}
	return h[i].first().order < h[j].first().order
}

func (h keyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *keyHeap) Push(x any) {
	k := x.(*keyQueue)
	k.index = len(*h)
	*h = append(*h, k)
}

// Pop implements heap.Interface.
func (h *keyHeap) Pop() any {
	old := *h
	k := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return k
}

func (k *keyQueue) first() *waiter { return k.waiters.Front().Value.(*waiter) }

func (s *Scheduler) payerLocked(a *Ask) *payerState {
	payer := cmp.Or(a.Payer, a.Key)
	c := s.payers[payer]
	if c == nil {
		c = &payerState{name: payer}
		s.payers[payer] = c
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
	if len(s.payers) < 2*s.swept+64 {
		return
	}
	now := time.Now()
	for name, c := range s.payers {
		c.pay(s.virtual)
		if c.running == 0 && c.waiting == 0 && c.weight > 0 && c.owed == 0 && c.debt == 0 && now.After(c.barredUntil) && !s.changesForLocked(c) {
			delete(s.payers, name)
		}
	}
	s.swept = len(s.payers)
}

// lowestLocked is the counter of the payer that is next, without the part for its running requests: that part is partly expected, and they
// may take much less. If no request waits, it is the counter of the payer that was scheduled last. Batch requests count only if no
// interactive one waits: their counters do not change while they are passed over, and would give each new payer a lead over waiting ones.
func (s *Scheduler) lowestLocked() float64 {
	for class := range classes {
		var next *payerState
		for _, q := range s.queues {
			if h := q.byClass[class]; len(h) > 0 && (next == nil || h[0].payer.due() < next.due()) {
				next = h[0].payer
			}
		}
		if next != nil {
			return next.counter - next.held
		}
	}
	return s.virtual
}

func (s *Scheduler) enqueueLocked(c *payerState, a *Ask, now time.Time) *waiter {
	name := a.queueName()
	q := s.queues[name]
	if q == nil {
		q = &modelQueue{name: name}
		s.queues[name] = q
	}
	c.lift(s.lowestLocked())
	s.arrivals++
	w := &waiter{ask: a, payer: c, queue: q, arrived: now, order: s.arrivals, ahead: q.n, ready: make(chan struct{})}
	for _, b := range s.fleet.Serving(a.Model) {
		srv := s.serverLocked(b)
		w.servers = append(w.servers, srv)
		srv.demand.count(c, 1, now)
	}
	s.waiting++
	c.waiting++
	q.n++
	if a.Avoid != nil {
		w.element = q.retries.PushBack(w)
		return w
	}
	if a.Batch {
		w.unaged = q.unaged.PushBack(w)
	}
	for _, k := range c.queues {
		if k.queue == q && k.batch == a.Batch {
			w.keyQueue = k
			w.element = k.waiters.PushBack(w)
			return w
		}
	}
	w.keyQueue = &keyQueue{queue: q, payer: c, batch: a.Batch, class: interactive}
	if a.Batch {
		w.keyQueue.class = batch
	}
	w.element = w.keyQueue.waiters.PushBack(w)
	c.queues = append(c.queues, w.keyQueue)
	heap.Push(&q.byClass[w.keyQueue.class], w.keyQueue)
	return w
}

// move puts a queue into another class.
func (k *keyQueue) move(class int) {
	heap.Remove(&k.queue.byClass[k.class], k.index)
	k.class = class
	heap.Push(&k.queue.byClass[class], k)
}

// ageLocked moves batch requests that have waited for long to the interactive class. Their payer's counter starts at that of the payer that
// is next. Otherwise a payer that was passed over would get every slot until its counter reaches those of the others.
func (s *Scheduler) ageLocked(q *modelQueue, now time.Time) {
	for e := q.unaged.Front(); e != nil; e = q.unaged.Front() {
		w := e.Value.(*waiter)
		if now.Sub(w.arrived) < s.patience() {
			return
		}
		q.unaged.Remove(e)
		w.unaged = nil
		if w.keyQueue.class == batch && w.keyQueue.first() == w {
			w.keyQueue.ageLocked(s.lowestLocked())
		}
	}
}

func (k *keyQueue) ageLocked(lowest float64) {
	if c := k.payer; c.due() < lowest {
		c.charge(time.Duration((lowest - c.due()) * c.weight))
	}
	k.move(interactive)
}

// leaveLocked removes w from the queue.
func (s *Scheduler) leaveLocked(w *waiter) {
	q, c := w.queue, w.payer
	for _, srv := range w.servers {
		srv.demand.count(c, -1, time.Now())
	}
	s.waiting--
	c.waiting--
	if q.n--; q.n == 0 {
		delete(s.queues, q.name) // clients choose the names of models
	}
	element := w.element
	w.element = nil
	if w.keyQueue == nil {
		q.retries.Remove(element)
		return
	}
	if w.unaged != nil {
		q.unaged.Remove(w.unaged)
	}
	first := w.keyQueue.waiters.Front() == element
	w.keyQueue.waiters.Remove(element)
	switch {
	case w.keyQueue.waiters.Len() == 0:
		heap.Remove(&q.byClass[w.keyQueue.class], w.keyQueue.index)
		for i, k := range c.queues {
			if k == w.keyQueue {
				c.queues = append(c.queues[:i], c.queues[i+1:]...)
				break
			}
		}
	case first && w.keyQueue.batch && w.keyQueue.class == interactive && w.keyQueue.first().unaged != nil:
		w.keyQueue.move(batch)
	case first:
		heap.Fix(&q.byClass[w.keyQueue.class], w.keyQueue.index)
	}
}

// all iterates over the waiting requests. The caller may remove the request that it has just got.
func (q *modelQueue) all() iter.Seq[*waiter] {
	var list []*waiter
	for e := q.retries.Front(); e != nil; e = e.Next() {
		list = append(list, e.Value.(*waiter))
	}
	for class := range q.byClass {
		for _, k := range q.byClass[class] {
			for e := k.waiters.Front(); e != nil; e = e.Next() {
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

// nextIn is the next request of q for b, or nil if no waiting request may run there.
func (s *Scheduler) nextIn(q *modelQueue, b *backend.Backend, now time.Time) (*waiter, rank) {
	for e := q.retries.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.ask.Avoid != b {
			return w, afterFailure
		}
	}
	s.ageLocked(q, now)
	if first := q.byClass[interactive]; len(first) > 0 {
		return first[0].first(), inTurn
	}
	if others := q.byClass[batch]; len(others) > 0 {
		return others[0].first(), leftOver
	}
	return nil, leftOver
}

// causeIn is the request of q for which b may change its model: the next one whose payer is not barred.
func (s *Scheduler) causeIn(q *modelQueue, b *backend.Backend, now time.Time) (*waiter, rank) {
	first, r := s.nextIn(q, b, now)
	if first == nil || !now.Before(first.payer.barredUntil) {
		return first, r
	}
	first = nil
	for class := range q.byClass {
		for _, k := range q.byClass[class] {
			if w := k.first(); !now.Before(w.payer.barredUntil) && precedes(w, inTurn, first, inTurn) {
				first = w
			}
		}
		if first != nil {
			return first, inTurn + rank(class)
		}
	}
	return nil, leftOver
}

// precedes reports whether w is scheduled before o.
func precedes(w *waiter, r rank, o *waiter, than rank) bool {
	switch {
	case o == nil:
		return true
	case r != than:
		return r < than
	case r != afterFailure && w.payer.due() != o.payer.due():
		return w.payer.due() < o.payer.due()
	}
	return w.order < o.order
}
