package sched

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
)

// stateWith is the state of a server with these models, of which the first are loaded.
func stateWith(loaded int, models ...string) backend.State {
	s := backend.State{Healthy: true, Version: "0.6.5", Checked: time.Now(), Installed: map[string]backend.Installed{}, Loaded: map[string]backend.Loaded{}}
	for i, m := range models {
		s.Installed[m] = backend.Installed{Digest: m, Embeds: m == "embed"}
		if i < loaded {
			s.Loaded[m] = backend.Loaded{}
		}
	}
	return s
}

// schedulerWithLoads is a scheduler whose loads take a minute, and what they were.
func schedulerWithLoads(o Options, list ...*backend.Backend) (*Scheduler, *[]string) {
	var mu sync.Mutex
	var done []string
	fleet := backend.NewFleet(list...)
	if o.MaxQueue == 0 {
		o.MaxQueue, o.MaxWait = 1000, 24*time.Hour
	}
	o.Load = func(ctx context.Context, b *backend.Backend, a *Ask) error {
		mu.Lock()
		done = append(done, b.Name+":"+a.Model)
		mu.Unlock()
		select {
		case <-ctx.Done():
			mu.Lock()
			done = append(done, "aborted")
			mu.Unlock()
			return ctx.Err()
		case <-time.After(time.Minute):
		}
		if a.Model == "broken" {
			return errors.New("the model cannot be loaded")
		}
		s := b.State()
		s.Loaded, s.Checked = map[string]backend.Loaded{a.Model: {}}, time.Now()
		b.Set(s)
		fleet.Refresh()
		return nil
	}
	return New(fleet, o), &done
}

func lease(t *testing.T, s *Scheduler, a Ask) *Lease {
	t.Helper()
	l, err := s.Acquire(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAWarmBackendIsChosen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := server("one", 2), server("two", 2)
		one.Set(stateWith(1, "a", "b"))
		two.Set(stateWith(1, "b", "a"))
		s, done := schedulerWithLoads(Options{}, one, two)
		for range 2 {
			if l := lease(t, s, Ask{Key: "k", Model: "b"}); l.Backend != two || l.Why != ReasonLoaded || l.Waited != 0 {
				t.Errorf("got server %s by reason %s", l.Backend.Name, l.Why)
			}
			if l := lease(t, s, Ask{Key: "k", Model: "a"}); l.Backend != one {
				t.Errorf("got server %s, want %s", l.Backend.Name, one.Name)
			}
		}
		if len(*done) != 0 {
			t.Errorf("got loads %v, want none", *done)
		}
	})
}

// The least busy is the one on which the request has the most of the backend, by what requests take there.
func TestTheLeastBusyIsChosen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick, slow := server("quick", 8), server("slow", 8)
		s := New(backend.NewFleet(slow, quick), Options{MaxQueue: 10, MaxWait: time.Hour})
		for range 20 { // both are tried, and measured
			a, b := lease(t, s, Ask{Key: "k", Model: "m"}), lease(t, s, Ask{Key: "k", Model: "m"})
			time.Sleep(time.Second)
			for _, l := range []*Lease{a, b} {
				if l.Backend == quick {
					l.Release()
				}
			}
			time.Sleep(2 * time.Second)
			a.Release()
			b.Release()
		}
		count := make(map[string]int)
		for range 8 {
			count[lease(t, s, Ask{Key: "k", Model: "m"}).Backend.Name]++
		}
		if count["quick"] != 6 || count["slow"] != 2 {
			t.Errorf("eight requests at one time: got %v, want 6 on quick and 2 on slow", count)
		}
	})
}

// A conversation stays where it began while there is a slot, others are spread, and if a backend is removed, only its conversations move.
func TestConversationsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := []*backend.Backend{server("one", 100), server("two", 100), server("three", 100)}
		s := New(backend.NewFleet(list...), Options{MaxQueue: 10, MaxWait: time.Hour, Prefix: true})
		home := make(map[uint64]*backend.Backend)
		count := make(map[string]int)
		for prefix := uint64(1); prefix <= 300; prefix++ {
			for range 3 {
				l := lease(t, s, Ask{Key: "k", Model: "m", Prefix: prefix})
				if was := home[prefix]; was != nil && was != l.Backend {
					t.Fatalf("conversation %d: got server %s, want %s as before", prefix, l.Backend.Name, was.Name)
				}
				home[prefix] = l.Backend
				l.Release()
			}
			count[home[prefix].Name]++
		}
		for name, n := range count {
			if n < 60 || n > 140 {
				t.Errorf("%s: got %d of 300 conversations, want 60 to 140", name, n)
			}
		}
		less := New(backend.NewFleet(list[:2]...), Options{MaxQueue: 10, MaxWait: time.Hour, Prefix: true})
		for prefix, was := range home {
			l := lease(t, less, Ask{Key: "k", Model: "m", Prefix: prefix})
			if was != list[2] && l.Backend != was {
				t.Errorf("conversation %d left %s, want it to stay: the server is still there", prefix, was.Name)
			}
			l.Release()
		}
	})
}

// There is one load for a model at one time. Requests that arrive meanwhile wait for it. The request that caused it goes first and pays.
func TestOneLoadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := server("one", 4), server("two", 4)
		one.Set(stateWith(0, "a"))
		two.Set(stateWith(0, "a"))
		s, done := schedulerWithLoads(Options{}, one, two)
		var leases [4]*Lease
		var all sync.WaitGroup
		for i := range leases {
			all.Go(func() { leases[i] = lease(t, s, Ask{Key: fmt.Sprint("k", i), Model: "a"}) })
			synctest.Wait()
			time.Sleep(time.Second)
		}
		all.Wait()
		if len(*done) != 1 {
			t.Fatalf("got loads %v, want one", *done)
		}
		cause := leases[0]
		if cause.Why != ReasonChange || cause.Loading != time.Minute || cause.Waited != 0 || cause.GPU() != time.Minute {
			t.Errorf("the request that caused the load: got %+v", cause)
		}
		for i, l := range leases[1:] {
			if l.Loading != 0 || l.Waited != time.Minute-time.Duration(i+1)*time.Second || l.Backend != cause.Backend {
				t.Errorf("a later request: got loading %v, waited %v, on %s", l.Loading, l.Waited, l.Backend.Name)
			}
		}
		for _, l := range leases {
			l.Release()
		}
		if cause.held != time.Minute || leases[1].held != 0 {
			t.Errorf("got held for %v and %v, want 1 min and 0", cause.held, leases[1].held)
		}
		wantEmpty(t, s)
	})
}

// A client that gives up does not end its load, whether others wait for it or not.
func TestGivingUpALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(0, "a"))
		s, done := schedulerWithLoads(Options{}, gpu)
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.Acquire(ctx, Ask{Key: "cause", Model: "a"}); api.AsError(err).Code != api.CodeClientGone {
				t.Error(err)
			}
		})
		synctest.Wait()
		other, leaveToo := context.WithCancel(t.Context())
		all.Go(func() {
			if l, err := s.Acquire(other, Ask{Key: "other", Model: "a"}); err != nil || l.Waited != time.Minute {
				t.Errorf("got %+v and error %v, want a lease after 1 min", l, err)
			} else {
				l.Release()
			}
		})
		synctest.Wait()
		leave()
		all.Wait()
		if len(*done) != 1 {
			t.Errorf("got loads %v, want one", *done)
		}
		leaveToo()

		gpu.Set(stateWith(0, "a"))
		s, done = schedulerWithLoads(Options{}, gpu)
		ctx, leave = context.WithCancel(t.Context())
		all.Go(func() { _, _ = s.Acquire(ctx, Ask{Key: "cause", Model: "a"}) })
		synctest.Wait()
		leave()
		all.Wait()
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		if len(*done) != 1 || !s.serverLocked(gpu).holds("a") {
			t.Errorf("loads: got %v, want one that was not aborted", *done)
		}
		wantEmpty(t, s)
	})
}

// If a load fails, the request is sent all the same, and gets Ollama's own error.
func TestALoadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(1, "a", "broken"))
		s, _ := schedulerWithLoads(Options{}, gpu)
		l := lease(t, s, Ask{Key: "k", Model: "broken"})
		if l.Loading != time.Minute {
			t.Errorf("got loading %v, want 1 min", l.Loading)
		}
		l.Release()
		wantEmpty(t, s)
	})
}

// A model that is wanted keeps its backend for as long as sixteen changes take, and no longer if requests wait for another.
func TestAChangeMustBeWorthIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 1)
		gpu.Set(stateWith(0, "a", "b"))
		s, done := schedulerWithLoads(Options{}, gpu)
		s.serverLocked(gpu).fits = 1
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, model := range []string{"a", "b"} {
			for i := range 3 {
				all.Go(func() {
					for ctx.Err() == nil {
						askFor(t, s, Ask{Key: fmt.Sprint(model, i), Model: model}, 10*time.Second)
					}
				})
			}
			time.Sleep(time.Second)
		}
		time.Sleep(3 * time.Hour)
		cancel()
		all.Wait()
		// One change takes a minute and is worth sixteen: 180 minutes have ten of them, and the end has two.
		if n := len(*done); n < 9 || n > 13 {
			t.Errorf("got %d changes in three hours, want 9 to 13", n)
		}
		wantEmpty(t, s)
	})
}

// If Ollama's records show that a request waited inside, the slots become fewer; after a while without such waits, more again.
func TestSlotsAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(0, 1000, 24*time.Hour)
		real := 2
		slots := func(n int) {
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for range n {
						l := lease(t, s, Ask{Key: "k", Model: "m", Plain: true})
						busy := s.Snapshot().InFlight
						time.Sleep(time.Second)
						l.NoteWaitInside(time.Duration(max(0, busy-real)) * time.Second)
						l.Release()
					}
				})
			}
			all.Wait()
		}
		for _, real = range []int{2, 1, 6} {
			slots(400)
			s.mu.Lock()
			for _, srv := range s.servers {
				if found := srv.model("m").found; found < max(1, real-1) || found > real+1 {
					t.Errorf("got %d slots, want about the real %d", found, real)
				}
			}
			s.mu.Unlock()
		}
	})
}

func TestEmbeddingModelsHaveOneSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(2, "a", "embed"))
		s, _ := schedulerWithLoads(Options{}, gpu)
		l := lease(t, s, Ask{Key: "k", Model: "embed"})
		_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "embed", Deadline: time.Now().Add(time.Second)})
		if api.AsError(err).Code != api.CodeQueueTimeout {
			t.Error(err)
		}
		lease(t, s, Ask{Key: "k", Model: "a"}).Release()
		l.Release()
		wantEmpty(t, s)
	})
}

// Total bounds all models of a backend together.
func TestTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 2)
		fleet := backend.NewFleet(gpu)
		fleet.Bound(gpu, backend.Bounds{Slots: 2, Total: 3})
		s := New(fleet, Options{MaxQueue: 100, MaxWait: time.Hour})
		var all sync.WaitGroup
		for _, model := range []string{"a", "b", "c"} {
			for range 10 {
				all.Go(func() {
					l := lease(t, s, Ask{Key: "k", Model: model})
					if n := s.Snapshot(); n.InFlight > 3 || n.ByModel[model] > 2 {
						t.Errorf("got %+v, want at most 3 in flight and 2 for %s", n, model)
					}
					time.Sleep(time.Second)
					l.Release()
				})
			}
		}
		from := time.Now()
		all.Wait()
		// The last few are of one model, and have two slots of the three.
		if took := time.Since(from); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("thirty requests of a second: got %v, want 10 s to 12 s", took)
		}
		wantEmpty(t, s)
	})
}

// If no backend is left for a request, it gets its error at once. A backend that is added serves waiting requests.
func TestTheFleetChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := server("one", 1), server("two", 1)
		one.Set(stateWith(1, "a"))
		two.Set(stateWith(1, "b"))
		fleet := backend.NewFleet(one, two)
		s := New(fleet, Options{MaxQueue: 100, MaxWait: time.Hour})
		held := lease(t, s, Ask{Key: "k", Model: "a"})
		failed := make(chan error, 1)
		go func() {
			_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "a"})
			failed <- err
		}()
		synctest.Wait()
		three := server("three", 1)
		three.Set(stateWith(1, "a"))
		taken := make(chan *Lease, 1)
		down := stateWith(1, "a")
		down.Healthy = false
		one.Set(down)
		fleet.Refresh()
		if err := <-failed; api.AsError(err).Code != api.CodeNoBackend {
			t.Error(err)
		}
		if _, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "none"}); api.AsError(err).Code != api.CodeNotFound {
			t.Error(err)
		}
		if _, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "b", Since: "0.13.3"}); api.AsError(err).Code != api.CodeTooOld {
			t.Error(err)
		}
		one.Set(stateWith(1, "a"))
		fleet.Refresh()
		go func() { taken <- lease(t, s, Ask{Key: "k", Model: "a"}) }()
		synctest.Wait()
		fleet.Add(three)
		if l := <-taken; l.Backend != three {
			t.Errorf("got server %s, want %s", l.Backend.Name, three.Name)
		} else {
			l.Release()
		}
		draining := stateWith(1, "a")
		draining.Draining = true
		one.Set(draining)
		fleet.Refresh()
		held.Release()
		if l := lease(t, s, Ask{Key: "k", Model: "a"}); l.Backend != three {
			t.Errorf("got server %s, want %s: the other one is draining", l.Backend.Name, three.Name)
		} else {
			l.Release()
		}
		fleet.Remove(three)
		s.mu.Lock()
		if s.servers[three] != nil {
			t.Error("the state of a removed backend is kept, want it dropped")
		}
		s.mu.Unlock()
		wantEmpty(t, s)
	})
}

// A backend that drains for a model continues with its own if the requests for the other model were served elsewhere.
func TestAChangeThatNobodyNeedsAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := server("one", 2), server("two", 1)
		one.Set(stateWith(1, "a", "b"))
		two.Set(stateWith(1, "b"))
		fleet := backend.NewFleet(one)
		s := New(fleet, Options{MaxQueue: 100, MaxWait: time.Hour})
		s.serverLocked(one).fits = 1
		running := lease(t, s, Ask{Key: "k", Model: "a"})
		var all sync.WaitGroup
		all.Go(func() { lease(t, s, Ask{Key: "k", Model: "b"}).Release() })
		time.Sleep(10 * time.Minute) // it has waited long enough for the backend to drain
		all.Go(func() { askFor(t, s, Ask{Key: "k", Model: "a"}, time.Second) })
		synctest.Wait()
		if n := s.Snapshot(); n.Waiting != 2 || n.InFlight != 1 {
			t.Fatalf("got %+v, want 2 waiting and 1 in flight: the server drains", n)
		}
		fleet.Add(two)
		synctest.Wait()
		if n := s.Snapshot(); n.Waiting != 0 || n.ByModel["a"] != 2 {
			t.Errorf("b was served elsewhere: got a waiting, want none: %+v", n)
		}
		all.Wait()
		running.Release()
		wantEmpty(t, s)
	})
}

// A memory with room takes another model while the backend serves what it has; after it has pushed a model out, it is known to have no
// room.
func TestAModelIsLoadedBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(1, "a", "b", "c"))
		fleet := backend.NewFleet(gpu)
		holds := 2
		s := New(fleet, Options{MaxQueue: 100, MaxWait: time.Hour, Load: func(_ context.Context, b *backend.Backend, a *Ask) error {
			time.Sleep(15 * time.Second)
			state := b.State()
			loaded := map[string]backend.Loaded{a.Model: {}}
			for model := range state.Loaded {
				if len(loaded) < holds {
					loaded[model] = backend.Loaded{}
				}
			}
			state.Loaded, state.Checked = loaded, time.Now()
			b.Set(state)
			fleet.Refresh()
			return nil
		}})
		long := lease(t, s, Ask{Key: "k", Model: "a"})
		var all sync.WaitGroup
		all.Go(func() {
			if l := lease(t, s, Ask{Key: "k", Model: "b"}); l.Loading != 15*time.Second {
				t.Errorf("got loading %v, want 15 s", l.Loading)
			} else {
				l.Release()
			}
		})
		synctest.Wait()
		if waited := askFor(t, s, Ask{Key: "k", Model: "a"}, time.Second); waited != 0 {
			t.Errorf("while another model was loaded as well, a request waited for %v, want 0", waited)
		}
		all.Wait()
		if waited := askFor(t, s, Ask{Key: "k", Model: "b"}, time.Second); waited != 0 {
			t.Errorf("a request for a loaded model: got %v of waiting, want 0", waited)
		}
		askFor(t, s, Ask{Key: "k", Model: "c"}, time.Second) // pushes one out
		if s.serverLocked(gpu).fits != 2 || s.serverLocked(gpu).room("d") {
			t.Errorf("got memory for %d models, want 2 and no room for another", s.serverLocked(gpu).fits)
		}
		long.Release()
		wantEmpty(t, s)
	})
}
