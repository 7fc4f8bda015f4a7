package sched

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
)

// askFor takes a slot, holds it and releases it.
func askFor(t *testing.T, s *Scheduler, a Ask, hold time.Duration) (waited time.Duration) {
	t.Helper()
	l, err := s.Acquire(t.Context(), a)
	if err != nil {
		t.Error(err)
		return 0
	}
	time.Sleep(hold)
	l.Release()
	return l.Waited
}

// grantOrder records the keys in the order in which they got slots.
type grantOrder struct {
	mu   sync.Mutex
	keys []string
}

func (o *grantOrder) ask(t *testing.T, s *Scheduler, a Ask, hold time.Duration) (waited time.Duration) {
	t.Helper()
	l, err := s.Acquire(t.Context(), a)
	if err != nil {
		t.Error(err)
		return 0
	}
	o.mu.Lock()
	o.keys = append(o.keys, a.Key)
	o.mu.Unlock()
	time.Sleep(hold)
	l.Release()
	return l.Waited
}

// A key with one request waits for one request of each other key, whatever they have queued.
func TestAHeavyKeyDoesNotHoldALightOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 10_000, 24*time.Hour)
		var all sync.WaitGroup
		for i := range 3 {
			for range 1000 {
				all.Go(func() { askFor(t, s, Ask{Key: fmt.Sprint("heavy", i), Model: "m"}, time.Second) })
			}
		}
		time.Sleep(10*time.Second + time.Millisecond)
		if waited := askFor(t, s, Ask{Key: "light", Model: "m"}, time.Second); waited > 4*time.Second {
			t.Errorf("behind three keys with requests of a second: got a wait of %v, want at most 4 s", waited)
		}
		all.Wait()
		wantEmpty(t, s)
	})
}

// Keys get equal service, not equal numbers of requests; with unequal weights, in proportion to them.
func TestServiceIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 10_000, 240*time.Hour)
		keys := []struct {
			name   string
			weight float64
			hold   time.Duration
		}{{"short", 1, time.Second}, {"long", 1, 20 * time.Second}, {"double", 2, 5 * time.Second}}
		got := make([]atomic.Int64, len(keys))
		end := time.Now().Add(2 * time.Hour)
		var all sync.WaitGroup
		for i, k := range keys {
			for range 8 {
				all.Go(func() {
					for time.Now().Before(end) {
						askFor(t, s, Ask{Key: k.name, Weight: k.weight, Model: "m"}, k.hold)
						if time.Now().Before(end) {
							got[i].Add(int64(k.hold))
						}
					}
				})
			}
		}
		all.Wait()
		for i, k := range keys {
			share := time.Duration(got[i].Load()).Seconds() / k.weight
			if want := 2 * 7200 / 4.0; share < want*0.97 || share > want*1.03 {
				t.Errorf("%s got %.0f s for each part of its weight, want about %.0f", k.name, share, want)
			}
		}
		wantEmpty(t, s)
	})
}

// What a key has not used is not saved up for it, and what it used while no other key waited does not count.
func TestThePastIsForgotten(t *testing.T) {
	for name, before := range map[string]string{"one was idle": "a", "the other was idle": "b"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scheduler(1, 1000, 24*time.Hour)
				for range 100 {
					askFor(t, s, Ask{Key: before, Model: "m"}, time.Minute)
				}
				var order grantOrder
				var all sync.WaitGroup
				for _, key := range []string{"a", "b"} {
					for range 20 {
						all.Go(func() { order.ask(t, s, Ask{Key: key, Model: "m"}, time.Second) })
					}
				}
				all.Wait()
				first := order.keys[:20]
				if n := len(slices.DeleteFunc(slices.Clone(first), func(k string) bool { return k == "b" })); n < 8 || n > 12 {
					t.Errorf("the first twenty slots: got %v, want 8 to 12 for keys other than b", first)
				}
			})
		})
	}
}

// A long request is charged while it runs: its key does not get another slot because its cost is not known yet.
func TestWhatRunsIsCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 1000, 24*time.Hour)
		askFor(t, s, Ask{Key: "other", Model: "m"}, time.Second)
		askFor(t, s, Ask{Key: "long", Model: "m"}, time.Second) // so that a second is expected of it
		go askFor(t, s, Ask{Key: "long", Model: "m"}, time.Hour)
		synctest.Wait()
		var turns grantOrder
		end := time.Now().Add(30 * time.Minute)
		var all sync.WaitGroup
		for _, key := range []string{"other", "long"} {
			for range 3 {
				all.Go(func() {
					for time.Now().Before(end) {
						turns.ask(t, s, Ask{Key: key, Model: "m"}, time.Second)
					}
				})
			}
		}
		all.Wait()
		count := make(map[string]int)
		for _, key := range turns.keys {
			count[key]++
		}
		if count["long"] > 20 || count["other"] < 1700 {
			t.Errorf("got %d slots next to the long request and %d for the other key, want at most 20 and at least 1700", count["long"], count["other"])
		}
		time.Sleep(time.Hour)
	})
}

// Batch requests run when no interactive ones wait. After a bounded time they compete with them.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 1000, 40*time.Minute)
		first := acquire(t, s, "m")
		var turns grantOrder
		var all sync.WaitGroup
		for _, key := range []string{"batch", "person"} {
			for range 5 {
				all.Go(func() { turns.ask(t, s, Ask{Key: key, Model: "m", Batch: key == "batch"}, time.Second) })
				synctest.Wait()
			}
		}
		first.Release()
		all.Wait()
		if want := []string{"person", "person", "person", "person", "person", "batch", "batch", "batch", "batch", "batch"}; !slices.Equal(turns.keys, want) {
			t.Errorf("got slots in the order %v, want %v", turns.keys, want)
		}

		// Three keys that never stop: a batch request that has waited for a quarter of the longest wait competes by its key's counter.
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 3 {
			all.Go(func() {
				for ctx.Err() == nil {
					turns.ask(t, s, Ask{Key: fmt.Sprint("person", i), Model: "m"}, time.Second)
				}
			})
		}
		time.Sleep(time.Minute)
		for range 10 {
			all.Go(func() {
				if waited := turns.ask(t, s, Ask{Key: "batch", Model: "m", Batch: true}, time.Second); waited < 10*time.Minute || waited > 10*time.Minute+41*time.Second {
					t.Errorf("a batch request waited for %v, want 10 min, and then one turn in four", waited)
				}
			})
		}
		time.Sleep(11 * time.Minute)
		cancel()
		all.Wait()
		wantEmpty(t, s)
	})
}

// A payer that sends its next request when one is answered returns each time with nothing waiting. That does not put it first.
func TestComingBackDoesNotStarve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 1000, 100*time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				for ctx.Err() == nil {
					askFor(t, s, Ask{Key: fmt.Sprint("loop", i), Model: "m"}, time.Second)
				}
			})
		}
		time.Sleep(time.Minute)
		var mu sync.Mutex
		var waits []time.Duration
		for range 10 {
			all.Go(func() {
				w := askFor(t, s, Ask{Key: "backlog", Model: "m"}, time.Second)
				mu.Lock()
				waits = append(waits, w)
				mu.Unlock()
			})
		}
		time.Sleep(10 * time.Minute)
		cancel()
		all.Wait()
		// Four payers and one slot: each has a request of a second in every four.
		if longest, want := slices.Max(waits), waitBound(4, 1, 9, time.Second); longest > want {
			t.Errorf("the last of ten requests waited for %v next to three payers that send one at a time, want at most %v", longest, want)
		}
		wantEmpty(t, s)
	})
}

// No request waits longer than W, whatever others do (docs/fairness.md derives it), and none is refused.
func TestTheWaitIsBounded(t *testing.T) {
	const longest = time.Minute
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, seed))
			slots, keys := 1+random.IntN(4), 2+random.IntN(6)
			s := scheduler(slots, 1_000_000, 1000*time.Hour)
			length := func(random *rand.Rand) time.Duration {
				if random.IntN(2) == 0 {
					return longest
				}
				return time.Duration(1 + random.Int64N(int64(longest)))
			}
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for k := range keys - 1 {
				// Each sends bursts, keeps many waiting, or returns now and then.
				burst, pause := 1+random.IntN(40), time.Duration(random.Int64N(int64(2*longest)))
				dice := rand.New(rand.NewPCG(seed, uint64(k)))
				all.Go(func() {
					for ctx.Err() == nil {
						var some sync.WaitGroup
						for range burst {
							hold := length(dice)
							some.Go(func() { askFor(t, s, Ask{Key: fmt.Sprint("other", k), Model: "m"}, hold) })
						}
						some.Wait()
						time.Sleep(pause)
					}
				})
			}
			time.Sleep(time.Duration(random.Int64N(int64(20 * longest))))
			own := random.IntN(4) // of its own requests before it
			for range own {
				hold := length(random)
				all.Go(func() { askFor(t, s, Ask{Key: "mine", Model: "m"}, hold) })
			}
			synctest.Wait()
			waited := askFor(t, s, Ask{Key: "mine", Model: "m"}, time.Second)
			if w := waitBound(keys, slots, own, longest); waited > w {
				t.Errorf("seed %d: with %d keys on %d slots and %d of its own before it, it waited for %v, the bound is %v", seed, keys, slots, own, waited, w)
			}
			cancel()
			all.Wait()
		})
	}
}

// waitBound is W of docs/fairness.md for keys of equal weight.
func waitBound(keys, slots, own int, longest time.Duration) time.Duration {
	others := time.Duration((keys - 1) * (slots + own + 1))
	return 2*longest + (others+time.Duration(own))*longest/time.Duration(slots)
}

// The same if the models of a crowd do not fit into one memory.
func TestTheWaitIsBoundedAcrossChanges(t *testing.T) {
	const longest, change = 30 * time.Second, 10 * time.Second
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(8, seed))
			slots, keys, models := 1+random.IntN(3), 2+random.IntN(4), 2+random.IntN(2)
			gpu := server("gpu", slots)
			names := []string{"a", "b", "c"}[:models]
			gpu.Set(stateWith(1, names...))
			fleet := backend.NewFleet(gpu)
			s := New(fleet, Options{MaxQueue: 1_000_000, MaxWait: 1000 * time.Hour, Load: func(_ context.Context, b *backend.Backend, a *Ask) error {
				time.Sleep(change)
				b.Set(stateWith(1, append([]string{a.Model}, names...)...))
				fleet.Refresh()
				return nil
			}})
			s.serverLocked(gpu).fits = 1
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for k := range keys - 1 {
				dice := rand.New(rand.NewPCG(seed, uint64(k)))
				all.Go(func() {
					for ctx.Err() == nil {
						var some sync.WaitGroup
						for range 1 + dice.IntN(20) {
							hold, model := time.Duration(1+dice.Int64N(int64(longest))), names[dice.IntN(models)]
							some.Go(func() { askFor(t, s, Ask{Key: fmt.Sprint("other", k), Model: model}, hold) })
						}
						some.Wait()
					}
				})
			}
			time.Sleep(time.Duration(random.Int64N(int64(40 * longest))))
			for _, model := range names {
				waited := askFor(t, s, Ask{Key: "mine", Model: model}, time.Second)
				worth := stint * (change + longest/2)
				turn := time.Duration(models) * (worth + change + longest)
				w := turn * (1 + (waitBound(keys, slots, 0, longest)+worth-1)/worth)
				if waited > w {
					t.Errorf("seed %d: with %d keys, %d models and %d slots it waited for %v, the bound is %v", seed, keys, models, slots, waited, w)
				}
			}
			cancel()
			all.Wait()
		})
	}
}

// A request that failed on a backend goes first, to another one, and is not refused because of requests that arrived since.
func TestARetryGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := server("one", 1), server("two", 1)
		s := New(backend.NewFleet(one, two), Options{MaxQueue: 2, MaxWait: time.Hour})
		a, b := acquire(t, s, "m"), acquire(t, s, "m")
		if a.Backend == b.Backend {
			t.Fatal("got one backend for both requests, want the idle one for the second")
		}
		for i := range 2 {
			go askFor(t, s, Ask{Key: fmt.Sprint("k", i), Model: "m"}, time.Second)
			synctest.Wait()
		}
		got := make(chan *Lease, 1)
		go func() {
			l, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "m", Avoid: a.Backend})
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		synctest.Wait()
		a.Release() // its own has failed there: this slot is for others
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("got the backend where the request had failed, want it to wait for the other")
		}
		b.Release()
		l := <-got
		if l.Backend != b.Backend {
			t.Errorf("got server %s, want %s", l.Backend.Name, b.Backend.Name)
		}
		l.Release()
		time.Sleep(time.Minute)
		wantEmpty(t, s)

		_, err := New(backend.NewFleet(one), Options{MaxQueue: 2, MaxWait: time.Hour}).Acquire(t.Context(), Ask{Key: "k", Model: "m", Avoid: one})
		if api.AsError(err).Code != api.CodeNoBackend {
			t.Errorf("with no other backend: got %v, want %s", err, api.CodeNoBackend)
		}
	})
}

// MaxQueue is for all, PerKey for one.
func TestAKeyHasItsPartOfTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(backend.NewFleet(server("gpu", 1)), Options{MaxQueue: 10, PerKey: 2, MaxWait: time.Hour})
		first := acquire(t, s, "m")
		for range 2 {
			go askFor(t, s, Ask{Key: "greedy", Model: "m"}, time.Second)
		}
		synctest.Wait()
		_, err := s.Acquire(t.Context(), Ask{Key: "greedy", Model: "m"})
		wantError(t, err, api.CodeQueueFull, time.Second)
		go askFor(t, s, Ask{Key: "other", Model: "m"}, time.Second)
		synctest.Wait()
		first.Release()
		time.Sleep(time.Minute)
		wantEmpty(t, s)
	})
}

// A queue that some payers fill has room for others: a payer may have as many requests waiting as the queue has free places.
func TestAQueueHasRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(backend.NewFleet(server("gpu", 1)), Options{MaxQueue: 1024, PerKey: 128, MaxWait: time.Hour})
		first := acquire(t, s, "m")
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, class := range []string{"batch", "interactive"} {
			for i := range 9 {
				for range 129 {
					all.Go(func() { _, _ = s.Acquire(ctx, Ask{Key: fmt.Sprint(class, i), Model: "m", Batch: class == "batch"}) })
				}
				synctest.Wait()
			}
			got := make(chan error, 1)
			go func() {
				l, err := s.Acquire(t.Context(), Ask{Key: "light in front of " + class, Model: "m"})
				if err == nil {
					l.Release()
				}
				got <- err
			}()
			synctest.Wait()
			if len(got) > 0 {
				t.Errorf("behind nine %s keys with a full backlog a light key got %v, want a place in the queue", class, <-got)
			}
		}
		got := make(chan error, 1)
		go func() { // the queue may be full now, but then some of it is batch
			l, err := s.Acquire(t.Context(), Ask{Key: "another light one", Model: "m"})
			if err == nil {
				l.Release()
			}
			got <- err
		}()
		synctest.Wait()
		if len(got) > 0 {
			t.Errorf("behind eighteen keys a light key got %v, want a place in the queue: %+v", <-got, s.Snapshot())
		}
		cancel()
		first.Release()
		all.Wait()
		synctest.Wait()
		wantEmpty(t, s)
	})
}

// Where every place is taken by as many payers, the newest batch request of the payer with the most is refused for it; an interactive one
// never is.
func TestBatchGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(backend.NewFleet(server("gpu", 1)), Options{MaxQueue: 4, MaxWait: time.Hour})
		first := acquire(t, s, "m")
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		ended := make(chan string, 10)
		wait := func(a Ask) {
			all.Go(func() {
				l, err := s.Acquire(ctx, a)
				if err == nil {
					l.Release()
					return
				}
				if ctx.Err() == nil {
					wantError(t, err, api.CodeQueueFull, api.AsError(err).RetryAfter)
					ended <- a.ID
				}
			})
			synctest.Wait()
		}
		wait(Ask{ID: "nightly 1", Key: "nightly", Model: "m", Batch: true})
		wait(Ask{ID: "nightly 2", Key: "nightly", Model: "m", Batch: true})
		wait(Ask{ID: "weekly", Key: "weekly", Model: "m", Batch: true})
		wait(Ask{ID: "person", Key: "person", Model: "m"})
		wait(Ask{ID: "late batch", Key: "late", Model: "m", Batch: true}) // it would only change places with one of nightly's two: those are more
		wait(Ask{ID: "anna", Key: "anna", Model: "m"})
		wait(Ask{ID: "bert", Key: "bert", Model: "m"})
		wait(Ask{ID: "carl", Key: "carl", Model: "m"})
		wait(Ask{ID: "dora", Key: "dora", Model: "m"})
		close(ended)
		var got []string
		for id := range ended {
			got = append(got, id)
		}
		if got[0] != "nightly 2" || got[len(got)-1] != "dora" || slices.Contains(got, "person") || slices.Contains(got, "anna") || len(got) != 5 {
			t.Errorf("refused in this order: %v, want the second of nightly, the batch requests, and dora, as no batch request is left to give way", got)
		}
		cancel()
		all.Wait()
		first.Release()
		wantEmpty(t, s)
	})
}
