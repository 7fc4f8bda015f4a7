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

// Fleet is every Ollama server behind the gateway. All but its list of watchers may be used by any goroutine.
type Fleet struct {
	mu      sync.Mutex // of changes
	list    []*Backend
	index   atomic.Pointer[index]
	changed []func()

	reviving sync.Mutex
	revived  time.Time // when Revive last asked

	watch   func(*Backend) context.CancelFunc // begins to probe one; nil unless Watch runs
	watched map[*Backend]context.CancelFunc
	told    func(*Backend, State) // of a change of health

	seeking sync.Mutex
	sought  time.Time // when the lists were last read for a model that nobody has

	shows shows
}

// index answers what a request asks of the fleet without a look at each server's lists.
type index struct {
	all     []*Backend
	models  map[string][]*Backend // those that may serve it, by canonical name
	unsaid  []*Backend            // of those that may serve, the ones whose models are not known
	minor   map[string][]*Backend // those with another digest under the name than most have
	healthy int
	known   map[string]bool // names that a server has listed since the start
}

// mostKnown bounds the names that are remembered of servers that no longer list them.
const mostKnown = 10_000

// NewFleet is a fleet of the servers given, in their order.
func NewFleet(list ...*Backend) *Fleet {
	f := &Fleet{list: list, watched: make(map[*Backend]context.CancelFunc)}
	f.Refresh()
	return f
}

// OnChange has changed called after every change of the fleet or of a server's state. Call it before the fleet is used.
func (f *Fleet) OnChange(changed func()) { f.changed = append(f.changed, changed) }

// All are the servers, in the order they came. The slice is not to be changed.
func (f *Fleet) All() []*Backend { return f.index.Load().all }

// Named is the server of that name, or nil.
func (f *Fleet) Named(name string) *Backend {
	for _, b := range f.All() {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// Healthy is how many servers answer.
func (f *Fleet) Healthy() int { return f.index.Load().healthy }

// Add appends a server; false says that its name is taken.
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

// Remove takes a server out; what it serves goes on.
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

// Serving are the servers that may be given a request for model: healthy, not draining, and having it, or not having said what they
// have. One server alone is asked for any model: its own words for one that it lacks are better than ours.
func (f *Fleet) Serving(model string) []*Backend {
	x := f.index.Load()
	if list, ok := x.models[model]; ok {
		return list
	}
	return x.unsaid
}

// Holding are the servers that answer a question about model: those that may serve it, or, where all of them are drained, those.
func (f *Fleet) Holding(model string) []*Backend {
	if list := f.Serving(model); len(list) > 0 {
		return list
	}
	var list []*Backend
	all := f.All()
	for _, b := range all {
		s := b.state.Load()
		_, has := s.Installed[model]
		if s.Healthy && (has || s.Installed == nil || len(all) == 1) && !slices.Contains(f.Minor(model), b) {
			list = append(list, b)
		}
	}
	return list
}

// Unreachable is the failure of a request for which no server is there.
func (f *Fleet) Unreachable() *api.Error {
	which := "no Ollama server that has this model can be reached"
	if len(f.All()) == 1 {
		which = "the Ollama server cannot be reached"
	}
	return &api.Error{Code: api.CodeNoBackend, RetryAfter: 5 * time.Second, Message: which + ": try again soon, or ask the operator"}
}

// Has says whether any server, healthy or not, may have model.
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

// Minor are the servers that have another model under the name than most: they are not asked for it.
func (f *Fleet) Minor(model string) []*Backend { return f.index.Load().minor[model] }

// Minors are the names for which Minor is not empty, in order.
func (f *Fleet) Minors() []string {
	var names []string
	for name := range f.index.Load().minor {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Set replaces what is known of a server. Refresh lets the fleet know.
func (b *Backend) Set(s State) { b.state.Store(&s) }

// Refresh reads every server's state again, and tells who watches. Whoever changes a state calls it.
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

// knownNames are those that old knows and those that are listed now.
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
				if shared { // with old, which is being read
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

// Knows reports whether a server has listed the model since the start: clients can ask for any other name, and make names up.
func (f *Fleet) Knows(model string) bool { return f.index.Load().known[model] }

func newIndex(list []*Backend) *index {
	x := &index{all: list, models: make(map[string][]*Backend), minor: make(map[string][]*Backend)}
	holders := make(map[string][]*Backend)
	for _, b := range list {
		s := b.state.Load()
		if s.Healthy {
			x.healthy++
		}
		if s.Installed == nil || len(list) == 1 {
			if s.Healthy && !s.Draining {
				x.unsaid = append(x.unsaid, b)
			}
			continue
		}
		for name := range s.Installed {
			holders[name] = append(holders[name], b)
		}
	}
	for name, has := range holders {
		digest := majority(name, has)
		serving := slices.Clone(x.unsaid)
		for _, b := range has {
			s := b.state.Load()
			switch {
			case s.Installed[name].Digest != digest:
				x.minor[name] = append(x.minor[name], b)
			case s.Healthy && !s.Draining:
				serving = append(serving, b)
			}
		}
		x.models[name] = serving
	}
	return x
}

// majority is the digest that most have under name; of several, the one that came first.
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
