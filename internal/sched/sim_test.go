package sched

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// A simulation runs a trace through a policy on modelled backends, on a clock of its own: the real scheduler, or one of the two that
// it is compared with.

// keyPattern is how one kind of key sends.
type keyPattern struct {
	name    string
	keys    int
	share   float64 // of the load, of all its keys together
	models  []string
	weight  float64
	batch   bool
	burst   int     // requests that come at one time; 0 is 1
	prompt  float64 // median, tokens; 0: 400
	output  float64 // median, tokens; 0: 150
	closed  int     // > 0: it sends its next request when one is answered, up to this number at one time; share is not used
	pausing time.Duration
}

// trace is what arrives, and where. Everything in it is fixed by its seed.
type trace struct {
	name     string
	seed     uint64
	machines int
	slots    int
	load     float64 // of what the machines can do without changing models
	length   time.Duration
	window   time.Duration // for which fairness is looked at; 0: half an hour
	maxWait  time.Duration // MAX_QUEUE_WAIT; 0: without bound
	patterns []keyPattern
	short    bool // it is run by every test
	plotted  bool
	recorded []job // instead of patterns
	failing  bool  // one machine after the other is away for two minutes in ten
}

// job is one request of a trace.
type job struct {
	at             time.Duration
	key            string
	weight         float64
	batch          bool
	model          string
	prompt, output float64
	fixed          time.Duration // of a recorded one: how long it takes; 0: by its lengths
}

// The model of a backend: reading a prompt and writing an answer take time for each token, and requests that run at one time slow each
// other down. docs/fairness.md shows how well this fits a real one.
const (
	perPrompt = 0.4e-3 // seconds
	perOutput = 25e-3
	slowing   = 0.15 // of each other request in flight
	changing  = 30 * time.Second
	spread    = 0.8 // sigma of the logarithms of the lengths
)

func duration(j *job, inFlight int) time.Duration {
	if j.fixed > 0 {
		return j.fixed
	}
	seconds := (j.prompt*perPrompt + j.output*perOutput) * (1 + slowing*float64(inFlight-1))
	return max(time.Duration(seconds*float64(time.Second)), time.Millisecond)
}

// jobs are the arrivals of a trace in their order.
func (tr *trace) jobs() []job {
	if tr.recorded != nil {
		return tr.recorded
	}
	random := rand.New(rand.NewPCG(tr.seed, 0))
	length := func(median float64) float64 { return max(1, math.Round(median*math.Exp(spread*random.NormFloat64()))) }
	var all []job
	for _, p := range tr.patterns {
		if p.closed > 0 {
			continue
		}
		mean := math.Exp(spread * spread / 2)
		typical := job{prompt: or(p.prompt, 400) * mean, output: or(p.output, 150) * mean}
		capacity := float64(tr.machines*tr.slots) / duration(&typical, tr.slots).Seconds()
		rate := tr.load * p.share * capacity / float64(p.keys) / float64(max(p.burst, 1))
		for k := range p.keys {
			for at := random.ExpFloat64() / rate; at < tr.length.Seconds(); at += random.ExpFloat64() / rate {
				for range max(p.burst, 1) {
					all = append(all, job{
						at: time.Duration(at * float64(time.Second)), key: fmt.Sprintf("%s-%d", p.name, k), weight: or(p.weight, 1), batch: p.batch,
						model: p.models[random.IntN(len(p.models))], prompt: length(or(p.prompt, 400)), output: length(or(p.output, 150)),
					})
				}
			}
		}
	}
	slices.SortStableFunc(all, func(a, b job) int { return int(a.at - b.at) })
	return all
}

// models are all that the trace asks for.
func (tr *trace) models() []string {
	var names []string
	for _, p := range tr.patterns {
		names = append(names, p.models...)
	}
	for i := range tr.recorded {
		names = append(names, tr.recorded[i].model)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func or(value, other float64) float64 {
	if value == 0 {
		return other
	}
	return value
}

// machine is a modelled backend: it has memory for one model, and changing it takes half a minute in which nothing else runs.
type machine struct {
	b        *backend.Backend
	models   []string
	mu       sync.Mutex
	model    string
	inFlight int
	most     int
	changes  int
	wrong    int // requests for a model that was not loaded
	gone     chan struct{}
}

func (m *machine) state(healthy bool) backend.State {
	s := backend.State{Healthy: healthy, Version: "0.6.5", Checked: time.Now(), Loaded: map[string]backend.Loaded{}, Installed: map[string]backend.Installed{}}
	for _, name := range m.models {
		s.Installed[name] = backend.Installed{Digest: name}
	}
	if m.model != "" {
		s.Loaded[m.model] = backend.Loaded{}
	}
	return s
}

// change loads a model.
func (m *machine) change(ctx context.Context, model string) error {
	m.mu.Lock()
	if m.inFlight > 0 {
		m.wrong++
	}
	m.mu.Unlock()
	select {
	case <-time.After(changing):
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.model = model
	m.changes++
	return nil
}

// run serves a job, and reports whether the machine was alive until the end.
func (m *machine) run(j *job) bool {
	m.mu.Lock()
	m.inFlight++
	m.most = max(m.most, m.inFlight)
	if m.model != j.model {
		m.wrong++
	}
	took, gone := duration(j, m.inFlight), m.gone
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.inFlight--
		m.mu.Unlock()
	}()
	select {
	case <-time.After(took):
		return true
	case <-gone:
		return false
	}
}

// policy decides which job runs next and on which machine.
type policy interface {
	take(j *job, avoid *machine) (m *machine, release func(), err error)
}

// fair is the real scheduler.
type fair struct {
	s        *Scheduler
	machines map[*backend.Backend]*machine
}

func newFair(machines []*machine, o Options) *fair {
	f := &fair{machines: make(map[*backend.Backend]*machine)}
	var list []*backend.Backend
	for _, m := range machines {
		f.machines[m.b] = m
		list = append(list, m.b)
	}
	fleet := backend.NewFleet(list...)
	o.MaxQueue = 1_000_000
	if o.MaxWait == 0 {
		o.MaxWait = 1000 * time.Hour
	}
	o.Load = func(ctx context.Context, b *backend.Backend, a *Ask) error {
		m := f.machines[b]
		if err := m.change(ctx, a.Model); err != nil {
			return err
		}
		b.Set(m.state(b.State().Healthy))
		fleet.Refresh()
		return nil
	}
	f.s = New(fleet, o)
	for _, m := range machines {
		f.s.serverLocked(m.b).fits = 1 // as each would have learned by its first change
	}
	return f
}

func (f *fair) take(j *job, avoid *machine) (*machine, func(), error) {
	a := Ask{Key: j.key, Weight: j.weight, Batch: j.batch, Model: j.model}
	if avoid != nil {
		a.Avoid = avoid.b
	}
	l, err := f.s.Acquire(context.Background(), a)
	if err != nil {
		return nil, nil, err
	}
	return f.machines[l.Backend], func() { l.Release() }, nil
}

// jobResult is the outcome of one job.
type jobResult struct {
	job
	wait, held time.Duration
	from, to   time.Duration // of its service
	failed     bool
}

// result is the outcome of a trace.
type result struct {
	trace   *trace
	policy  string
	all     []jobResult
	changes int
	wrong   int
	most    int
	end     time.Duration
}

// simulate runs a trace under a policy.
func simulate(t *testing.T, tr *trace, name string) *result {
	r := &result{trace: tr, policy: name}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var machines []*machine
		for i := range tr.machines {
			m := &machine{b: backend.New(fmt.Sprintf("gpu%d", i), &url.URL{Scheme: "http", Host: "gpu"}, tr.slots, "", ""), models: tr.models(), gone: make(chan struct{})}
			m.b.Set(m.state(true))
			machines = append(machines, m)
		}
		var p policy
		switch name {
		case "fair":
			p = newFair(machines, Options{MaxWait: tr.maxWait})
		default:
			p = newPlain(machines, tr.slots, name)
		}
		stop := make(chan struct{})
		if tr.failing {
			go fail(p, machines, stop)
		}
		var mu sync.Mutex
		var all sync.WaitGroup
		one := func(j job) {
			asked := time.Now()
			s := jobResult{job: j}
			var avoid *machine
			for range 3 {
				m, release, err := p.take(&j, avoid)
				if err != nil {
					time.Sleep(5 * time.Second) // as its Retry-After asks
					continue
				}
				s.from = time.Since(start)
				s.wait = time.Since(asked)
				ok := m.run(&j)
				release()
				s.to = time.Since(start)
				s.held += s.to - s.from
				if s.failed = !ok; ok {
					break
				}
				avoid = m
			}
			mu.Lock()
			r.all = append(r.all, s)
			mu.Unlock()
		}
		for _, pattern := range tr.patterns {
			for k := range pattern.keys * pattern.closed {
				random := rand.New(rand.NewPCG(tr.seed, uint64(k)+1))
				length := func(median float64) float64 { return max(1, math.Round(median*math.Exp(spread*random.NormFloat64()))) }
				all.Go(func() {
					for time.Since(start) < tr.length {
						one(job{
							at: time.Since(start), key: fmt.Sprintf("%s-%d", pattern.name, k/pattern.closed), weight: or(pattern.weight, 1), batch: pattern.batch,
							model: pattern.models[random.IntN(len(pattern.models))], prompt: length(or(pattern.prompt, 400)), output: length(or(pattern.output, 150)),
						})
						time.Sleep(time.Duration(random.ExpFloat64() * float64(pattern.pausing)))
					}
				})
			}
		}
		all.Go(func() {
			for _, j := range tr.jobs() {
				time.Sleep(j.at - time.Since(start))
				all.Go(func() { one(j) })
			}
		})
		all.Wait()
		r.end = time.Since(start)
		close(stop)
		time.Sleep(changing) // a change that no job waits for ends too
		for _, m := range machines {
			r.changes += m.changes
			r.wrong += m.wrong
			r.most = max(r.most, m.most)
		}
	})
	return r
}

// fail takes one machine after the other away for two minutes: what runs there dies.
func fail(p policy, machines []*machine, stop <-chan struct{}) {
	set := func(m *machine, healthy bool) {
		m.b.Set(m.state(healthy))
		if f, ok := p.(*fair); ok {
			f.s.fleet.Refresh()
		} else {
			p.(*plain).fill()
		}
	}
	for i := 0; ; i++ {
		m := machines[i%len(machines)]
		select {
		case <-time.After(8 * time.Minute):
		case <-stop:
			return
		}
		m.mu.Lock()
		m.model = ""
		m.mu.Unlock()
		set(m, false)
		m.mu.Lock()
		close(m.gone)
		m.gone = make(chan struct{})
		m.mu.Unlock()
		select {
		case <-time.After(2 * time.Minute):
		case <-stop:
		}
		set(m, true)
	}
}
