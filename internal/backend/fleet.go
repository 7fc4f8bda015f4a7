package backend

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/api"
)

// Fleet is the set of Ollama servers behind the gateway. Any goroutine may use all of its methods but OnChange.
type Fleet struct {
	mu      sync.Mutex // guards changes
	list    []*Backend
	index   atomic.Pointer[index]
	changed []func()

	reviving sync.Mutex
	revived  time.Time // when Revive last asked the servers

	watch    func(*Backend) context.CancelFunc // starts to probe a server; nil unless Watch runs
	watched  map[*Backend]context.CancelFunc
	onHealth func(*Backend, State) // of a change of health

	readingLists sync.Mutex
	listsRead    time.Time // when the lists were last read for a model that no server has

	shows shows
}

// index answers the questions of a request without a look at each server's lists.
type index struct {
	all       []*Backend
	models    map[string][]*Backend // the servers that may serve it, by canonical name
	unlisted  []*Backend            // the servers that may serve, but whose models are unknown
	divergent map[string][]*Backend // the servers whose digest under the name differs from the majority's
	healthy   int
	known     map[string]bool // names that a server has listed since the start
}

// mostKnown bounds the number of remembered names that no server lists any more.
const mostKnown = 10_000

// NewFleet returns a fleet of the given servers, in their order.
func NewFleet(list ...*Backend) *Fleet {
	f := &Fleet{list: list, watched: make(map[*Backend]context.CancelFunc)}
	f.Refresh()
	return f
}

// OnChange registers a function that is called after every change of the fleet or of a server's state. Call OnChange before the
// fleet is used.
func (f *Fleet) OnChange(changed func()) { f.changed = append(f.changed, changed) }

// All returns the servers, in the order in which they were added. Callers must not change the slice.
func (f *Fleet) All() []*Backend { return f.index.Load().all }

// Named returns the server with that name, or nil.
func (f *Fleet) Named(name string) *Backend {
	for _, b := range f.All() {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// Healthy returns the number of healthy servers.
func (f *Fleet) Healthy() int { return f.index.Load().healthy }

// Add appends a server. It returns false if the name is taken.
func (f *Fleet) Add(b *Backend) bool {
	f.mu.Lock()
	taken := slices.ContainsFunc(f.list, func(o *Backend) bool { return o.Name == b.Name })
	if !taken {
		f.list = append(slices.Clone(f.list), b)
		if f.watch != nil {
			f.watched[b] = f.watch(b)
		}
	}
	f.mu.Unlock()
	f.Refresh()
	return !taken
}

// Remove takes a server out of the fleet. Requests that it serves continue.
func (f *Fleet) Remove(b *Backend) {
	f.mu.Lock()
	f.list = slices.DeleteFunc(slices.Clone(f.list), func(o *Backend) bool { return o == b })
	if stop := f.watched[b]; stop != nil {
		stop()
		delete(f.watched, b)
	}
	f.mu.Unlock()
	f.Refresh()
}

// Serving returns the servers that may get a request for model: healthy, not draining, and with the model or with an unknown list.
// If the fleet has only one server, it gets requests for any model, because its own error for a missing model is better than ours.
func (f *Fleet) Serving(model string) []*Backend {
	x := f.index.Load()
	if list, ok := x.models[model]; ok {
		return list
	}
	return x.unlisted
}

// Holding returns the servers that can answer a question about model: the servers that may serve it, or the draining ones if all are
// drained.
func (f *Fleet) Holding(model string) []*Backend {
	if list := f.Serving(model); len(list) > 0 {
		return list
	}
	var list []*Backend
	all := f.All()
	for _, b := range all {
		s := b.state.Load()
		_, has := s.Installed[model]
		if s.Healthy && (has || s.Installed == nil || len(all) == 1) && !slices.Contains(f.Divergent(model), b) {
			list = append(list, b)
		}
	}
	return list
}

// Unreachable returns the error for a request for which no server is available.
func (f *Fleet) Unreachable() *api.Error {
	which := "no Ollama server that has this model can be reached"
	if len(f.All()) == 1 {
		which = "the Ollama server cannot be reached"
	}
	return &api.Error{Code: api.CodeNoBackend, RetryAfter: 5 * time.Second, Message: which + ": try again soon, or ask the operator"}
}

// Has reports whether any server, healthy or not, may have model.
func (f *Fleet) Has(model string) bool {
	all := f.All()
	if len(all) == 1 {
		return true
	}
	for _, b := range all {
		s := b.state.Load()
		if _, ok := s.Installed[model]; ok || s.Installed == nil {
			return true
		}
	}
	return false
}

// Divergent returns the servers whose model under the name differs from the one that most servers have. They get no requests for it.
func (f *Fleet) Divergent(model string) []*Backend { return f.index.Load().divergent[model] }

// DivergentNames returns the sorted names for which Divergent is not empty.
func (f *Fleet) DivergentNames() []string {
	var names []string
	for name := range f.index.Load().divergent {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Set replaces the state of a server. Call Refresh afterwards, so that the fleet uses it.
func (b *Backend) Set(s State) { b.state.Store(&s) }

// Refresh reads every server's state again and calls the functions of OnChange. Call it after each change of a state.
func (f *Fleet) Refresh() {
	f.mu.Lock()
	x := newIndex(f.list)
	x.known = knownNames(f.list, f.index.Load())
	f.index.Store(x)
	f.mu.Unlock()
	for _, tell := range f.changed {
		tell()
	}
}

// knownNames returns the names in old and the names that are listed now.
func knownNames(list []*Backend, old *index) map[string]bool {
	var known map[string]bool
	if old != nil {
		known = old.known
	}
	shared := true
	add := func() {
		for _, b := range list {
			for name := range b.state.Load().Installed {
				if known[name] {
					continue
				}
				if shared { // old has it too, and may be read at the same time
					known, shared = maps.Clone(known), false
				}
				if known == nil {
					known = make(map[string]bool)
				}
				known[name] = true
			}
		}
	}
	if add(); len(known) > mostKnown {
		known, shared = nil, false
		add()
	}
	return known
}

// Knows reports whether a server has listed the model since the start. Clients can ask for any other name, including invented ones.
func (f *Fleet) Knows(model string) bool { return f.index.Load().known[model] }

func newIndex(list []*Backend) *index {
	x := &index{all: list, models: make(map[string][]*Backend), divergent: make(map[string][]*Backend)}
	holders := make(map[string][]*Backend)
	for _, b := range list {
		s := b.state.Load()
		if s.Healthy {
			x.healthy++
		}
		if s.Installed == nil || len(list) == 1 {
			if s.Healthy && !s.Draining {
				x.unlisted = append(x.unlisted, b)
			}
			continue
		}
		for name := range s.Installed {
			holders[name] = append(holders[name], b)
		}
	}
	for name, has := range holders {
		digest := majority(name, has)
		serving := slices.Clone(x.unlisted)
		for _, b := range has {
			s := b.state.Load()
			switch {
			case s.Installed[name].Digest != digest:
				x.divergent[name] = append(x.divergent[name], b)
			case s.Healthy && !s.Draining:
				serving = append(serving, b)
			}
		}
		x.models[name] = serving
	}
	return x
}

// majority returns the digest that most servers have under name. If several are equally common, the first one counts.
func majority(name string, has []*Backend) string {
	count := make(map[string]int)
	best := ""
	for _, b := range has {
		count[b.state.Load().Installed[name].Digest]++
	}
	for _, b := range has {
		if d := b.state.Load().Installed[name].Digest; count[d] > count[best] {
			best = d
		}
	}
	return best
}
