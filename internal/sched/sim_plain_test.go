package sched

import (
	"sync"
	"time"
)

// plain schedules as a gateway without a scheduler of its own does: first come, first served over all keys, or one request of each key
// in turn. It prefers a machine that has the model in its memory; if none of these has a free slot, the next request
// waits for an idle machine, and so do all behind it. A greedy one lets requests pass whose model is loaded: nothing serves more, but a
// request for another model waits until no request wants the loaded one.
type plain struct {
	machines []*machine
	slots    int
	turns    bool
	greedy   bool

	mu       sync.Mutex
	inFlight map[*machine]int
	changing map[*machine]string       // to which model
	queues   map[string][]*plainWaiter // by key if they take turns, otherwise by model
	names    []string
	last     int // in names: the queue that was served last
	waiting  int
	arrivals int
}

type plainWaiter struct {
	j     *job
	order int
	ready chan *machine
}

func newPlain(machines []*machine, slots int, name string) *plain {
	return &plain{
		machines: machines, slots: slots, turns: name == "round-robin", greedy: name == "greedy",
		inFlight: make(map[*machine]int), changing: make(map[*machine]string), queues: make(map[string][]*plainWaiter),
	}
}

func (p *plain) take(j *job, _ *machine) (*machine, func(), error) {
	p.mu.Lock()
	name := j.model
	if p.turns {
		name = j.key
	}
	if _, ok := p.queues[name]; !ok {
		p.names = append(p.names, name)
	}
	p.arrivals++
	w := &plainWaiter{j, p.arrivals, make(chan *machine, 1)}
	p.queues[name] = append(p.queues[name], w)
	p.waiting++
	p.mu.Unlock()
	p.fill()
	m := <-w.ready
	return m, func() {
		p.mu.Lock()
		p.inFlight[m]--
		p.mu.Unlock()
		p.fill()
	}, nil
}

// next is the queue that is served next: with onlyReady, of those whose first request can run at once.
func (p *plain) next(onlyReady bool) int {
	best := -1
	for i := range p.names {
		at := (p.last + 1 + i) % len(p.names)
		q := p.queues[p.names[at]]
		switch {
		case len(q) == 0 || onlyReady && p.warm(q[0]) == nil:
		case p.turns:
			return at
		case best < 0 || q[0].order < p.queues[p.names[best]][0].order:
			best = at
		}
	}
	return best
}

func (p *plain) fill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.waiting > 0 {
		at := p.next(false)
		m := p.choose(p.queues[p.names[at]][0])
		if m == nil && p.greedy {
			if at = p.next(true); at >= 0 {
				m = p.warm(p.queues[p.names[at]][0])
			}
		}
		if m == nil {
			return
		}
		q := p.queues[p.names[at]]
		p.last, p.queues[p.names[at]] = at, q[1:]
		p.waiting--
		p.inFlight[m]++
		q[0].ready <- m
	}
}

// warm is a machine that can serve w at once.
func (p *plain) warm(w *plainWaiter) (best *machine) {
	for _, m := range p.machines {
		m.mu.Lock()
		has := m.model == w.j.model
		m.mu.Unlock()
		if has && m.b.State().Healthy && p.changing[m] == "" && p.inFlight[m] < p.slots && (best == nil || p.inFlight[m] < p.inFlight[best]) {
			best = m
		}
	}
	return best
}

// choose is a machine for w. If one has to change its model first, choose begins the change and returns nil.
func (p *plain) choose(w *plainWaiter) *machine {
	if m := p.warm(w); m != nil {
		return m
	}
	var idle *machine
	for _, m := range p.machines {
		if p.changing[m] == w.j.model {
			return nil // it is on its way
		}
		if idle == nil && m.b.State().Healthy && p.changing[m] == "" && p.inFlight[m] == 0 {
			idle = m
		}
	}
	if idle == nil {
		return nil
	}
	p.changing[idle] = w.j.model
	go func() {
		time.Sleep(changing)
		idle.mu.Lock()
		idle.model = w.j.model
		idle.changes++
		idle.mu.Unlock()
		p.mu.Lock()
		p.changing[idle] = ""
		p.mu.Unlock()
		p.fill()
	}()
	return nil
}
