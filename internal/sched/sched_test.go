package sched

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func scheduler(slots, maxQueue int, maxWait time.Duration) *Scheduler {
	return New(backend.NewFleet(server("gpu", slots)), Options{MaxQueue: maxQueue, MaxWait: maxWait})
}

// server is a server that answers and does not list its models.
func server(name string, slots int) *backend.Backend {
	b := backend.New(name, &url.URL{Scheme: "http", Host: name}, slots, "", "")
	b.Set(backend.State{Healthy: true})
	return b
}

func acquire(t *testing.T, s *Scheduler, model string) *Lease {
	t.Helper()
	l, err := s.Acquire(t.Context(), Ask{Key: "k", Model: model})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wantEmpty checks that nothing is left: no slot in use, no request waiting, no queue.
func wantEmpty(t *testing.T, s *Scheduler) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queues) != 0 || s.waiting != 0 || len(s.running) != 0 {
		t.Errorf("%d queues, %d waiting and %d running are left, want none", len(s.queues), s.waiting, len(s.running))
	}
	for name, c := range s.payers {
		if c.running != 0 || c.waiting != 0 || len(c.queues) != 0 || c.held != 0 {
			t.Errorf("key %q: got %+v, want nothing running, waiting or held", name, c)
		}
	}
	for b, srv := range s.servers {
		for _, st := range srv.models {
			if st.inFlight != 0 || st.slots != 0 || st.growing != 0 {
				t.Errorf("model %s: got %+v, want no slot in use", st.model, st)
			}
		}
		if srv.inFlight != 0 || srv.load != nil || srv.draining != nil || len(srv.models) > maxModels {
			t.Errorf("server %s: got %d in flight and %d models, want 0 and at most %d: %+v", b.Name, srv.inFlight, len(srv.models), maxModels, srv)
		}
	}
}

func wantError(t *testing.T, err error, code api.Code, retryAfter time.Duration) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	if e.RetryAfter != retryAfter || e.NoRetry != (retryAfter > 30*time.Second) {
		t.Errorf("retry after %v, no retry %v, want %v", e.RetryAfter, e.NoRetry, retryAfter)
	}
}

// Whatever requests arrive, end or give up: no more slots are in use than there are, all are in use while a request waits, none is lost.
func TestSlotsUnderAHammer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, clients = 3, 60
		s := scheduler(slots, 40, 20*time.Millisecond)
		models := []string{"a", "b"}
		var inUse [2]atomic.Int64
		var served, full, late, left atomic.Int64
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(i)))
				pause := func(most int) { time.Sleep(time.Duration(random.IntN(most)) * time.Millisecond) }
				for range 40 {
					pause(10)
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Duration(random.IntN(60))*time.Millisecond, cancel)
					model := random.IntN(2)
					l, err := s.Acquire(ctx, Ask{Key: fmt.Sprint("k", i%20), Model: models[model]})
					switch {
					case err == nil:
						if n := inUse[model].Add(1); n > slots {
							t.Errorf("got %d slots in use, want at most %d", n, slots)
						}
						pause(8)
						inUse[model].Add(-1)
						l.Release()
						served.Add(1)
					case api.AsError(err).Code == api.CodeQueueFull:
						full.Add(1)
					case api.AsError(err).Code == api.CodeQueueTimeout:
						late.Add(1)
					case api.AsError(err).Code == api.CodeClientGone:
						left.Add(1)
					default:
						t.Error(err)
					}
					cancel()
				}
			})
		}
		for range 200 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			s.mu.Lock()
			for name, q := range s.queues {
				for _, srv := range s.servers {
					if n := srv.model(name.model).inFlight; q.n > 0 && n != slots {
						t.Errorf("%d wait for %s: got %d slots in use, want %d", q.n, name.model, n, slots)
					}
				}
			}
			s.mu.Unlock()
		}
		all.Wait()
		wantEmpty(t, s)
		if served.Load() == 0 || full.Load() == 0 || late.Load() == 0 || left.Load() == 0 {
			t.Errorf("got served %d, full %d, late %d, left %d, want some of each", served.Load(), full.Load(), late.Load(), left.Load())
		}
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 100, time.Hour)
		first := acquire(t, s, "m")
		var order []int
		var waited []time.Duration
		for i := range 20 {
			go func() {
				l := acquire(t, s, "m")
				order, waited = append(order, i), append(waited, l.Waited)
				time.Sleep(time.Second)
				l.Release()
			}()
			synctest.Wait() // it is in the queue
		}
		if n := s.Snapshot(); n.InFlight != 1 || n.Waiting != 20 || n.ByModel["m"] != 1 {
			t.Errorf("got %+v, want 1 in flight and 20 waiting for one model", n)
		}
		time.Sleep(time.Minute)
		first.Release()
		// A request that arrives while others wait does not pass them.
		last := acquire(t, s, "m")
		last.Release()
		if !slices.IsSorted(order) || len(order) != 20 || last.Waited != 20*time.Second {
			t.Errorf("got order %v and the last one after %v, want 20 in order and 20 s", order, last.Waited)
		}
		for i, w := range waited {
			if want := time.Minute + time.Duration(i)*time.Second; w != want {
				t.Errorf("number %d waited %v by its lease, %v by the clock", i, w, want)
			}
		}
		wantEmpty(t, s)
	})
}

// A released slot goes to a waiting request: no other can take it in between.
func TestHandOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 10, time.Hour)
		a, b := acquire(t, s, "m"), acquire(t, s, "m")
		var got *Lease
		go func() { got = acquire(t, s, "m") }()
		synctest.Wait()
		a.Release()
		if n := s.Snapshot(); n.InFlight != 2 || n.Waiting != 0 {
			t.Errorf("got %+v, want 2 in flight and none waiting", n)
		}
		synctest.Wait()
		if got == nil {
			t.Fatal("the waiting request was not woken")
		}
		got.Release()
		b.Release()
		wantEmpty(t, s)
	})
}

func TestEachModelHasItsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 10, time.Second)
		var held []*Lease
		for _, model := range []string{"a", "a", "b", "b", "c"} {
			held = append(held, acquire(t, s, model))
		}
		if n := s.Snapshot(); n.InFlight != 5 || n.ByModel["a"] != 2 || n.ByModel["b"] != 2 || n.ByModel["c"] != 1 {
			t.Errorf("got %+v, want 5 in flight: 2 for a, 2 for b, 1 for c", n)
		}
		_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "a"})
		wantError(t, err, api.CodeQueueTimeout, time.Second)
		for _, l := range held {
			l.Release()
		}
		wantEmpty(t, s)
	})
}

// Clients choose the names of models: a million of them must leave nothing.
func TestLanesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 0, time.Second)
		for i := range 1000 {
			acquire(t, s, string(rune('0'+i))).Release()
		}
		wantEmpty(t, s)
		l := acquire(t, s, "m")
		_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "m"})
		wantError(t, err, api.CodeQueueFull, time.Second)
		l.Release()
		wantEmpty(t, s)
	})
}

func TestQueueFull(t *testing.T) {
	for _, c := range []struct {
		slots, queue int
		held, want   time.Duration // how long a slot is held, and the expected Retry-After
	}{
		{1, 0, 200 * time.Millisecond, time.Second},
		{1, 2, 5 * time.Second, 15 * time.Second}, // two before me, and the one that runs
		{4, 3, 5 * time.Second, 5 * time.Second},
		{4, 7, 5 * time.Second, 10 * time.Second},
		{2, 9, 9 * time.Second, 45 * time.Second},
		{1, 100, 10 * time.Minute, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := scheduler(c.slots, c.queue, time.Hour)
			warm := acquire(t, s, "m")
			time.Sleep(c.held)
			if held := warm.Release(); held != c.held {
				t.Errorf("held for %v, want %v", held, c.held)
			}
			var leases []*Lease
			for range c.slots {
				leases = append(leases, acquire(t, s, "m"))
			}
			ctx, cancel := context.WithCancel(t.Context())
			for i := range c.queue {
				go s.Acquire(ctx, Ask{Key: fmt.Sprint("k", i), Model: "m"})
			}
			synctest.Wait()
			before := time.Now()
			_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "m"})
			wantError(t, err, api.CodeQueueFull, c.want)
			if time.Since(before) != 0 {
				t.Error("a full queue let one more request wait")
			}
			cancel()
			synctest.Wait()
			for _, l := range leases {
				l.Release()
			}
			wantEmpty(t, s)
		})
	}
}

// The queue is bounded over all models together.
func TestQueueIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 1, time.Minute)
		a, b := acquire(t, s, "a"), acquire(t, s, "b")
		go s.Acquire(t.Context(), Ask{Key: "k", Model: "a"})
		synctest.Wait()
		_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "b"})
		wantError(t, err, api.CodeQueueFull, time.Second)
		acquire(t, s, "c").Release() // a free slot needs no queue
		time.Sleep(time.Hour)
		a.Release()
		b.Release()
		wantEmpty(t, s)
	})
}

func TestWaitTimeout(t *testing.T) {
	for name, c := range map[string]struct{ maxWait, deadline, want time.Duration }{
		"the scheduler's":        {time.Minute, 0, time.Minute},
		"the request's":          {time.Minute, 10 * time.Second, 10 * time.Second},
		"the shorter of the two": {time.Minute, time.Hour, time.Minute},
		"over already":           {time.Minute, -time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := scheduler(1, 10, c.maxWait)
				first := acquire(t, s, "m")
				time.Sleep(40 * time.Second)
				first.Release()
				l := acquire(t, s, "m")
				start := time.Now()
				var deadline time.Time
				if c.deadline != 0 {
					deadline = start.Add(c.deadline)
				}
				_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "m", Deadline: deadline})
				wantError(t, err, api.CodeQueueTimeout, 40*time.Second)
				if took := time.Since(start); took != c.want {
					t.Errorf("it waited %v, want %v", took, c.want)
				}
				l.Release()
				wantEmpty(t, s)
			})
		})
	}
}

func TestCancelWhileQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 10, time.Hour)
		l := acquire(t, s, "m")
		ctx, cancel := context.WithCancel(t.Context())
		var gone error
		go func() { _, gone = s.Acquire(ctx, Ask{Key: "k", Model: "m"}) }()
		synctest.Wait()
		var next *Lease
		go func() { next = acquire(t, s, "m") }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		wantError(t, gone, api.CodeClientGone, 0)
		if n := s.Snapshot(); n.Waiting != 1 || n.InFlight != 1 {
			t.Errorf("got %+v, want 1 waiting and 1 in flight", n)
		}
		l.Release()
		synctest.Wait()
		if next == nil {
			t.Fatal("the slot went to a request that had left")
		}
		next.Release()
		wantEmpty(t, s)
	})
}

// The grant comes at the very moment at which the wait ends, by the client or by the clock. In each order the slot is either
// in a lease or free, and the next waiting request gets it.
func TestGrantCrossesWithTheEndOfTheWait(t *testing.T) {
	for _, name := range []string{"client", "clock"} {
		t.Run(name, func(t *testing.T) {
			granted := 0
			for i := range 200 {
				synctest.Test(t, func(t *testing.T) {
					s := scheduler(1, 10, time.Second)
					l := acquire(t, s, "m")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var got *Lease
					var err error
					go func() { got, err = s.Acquire(ctx, Ask{Key: "k", Model: "m"}) }()
					time.Sleep(500 * time.Millisecond)
					behind := make(chan *Lease, 1)
					go func() { behind <- acquire(t, s, "m") }()
					synctest.Wait()
					switch {
					case name == "clock":
						time.Sleep(500 * time.Millisecond) // wakes at the instant at which the waiter's timer fires
						l.Release()
					case i%2 == 0: // the waiter runs only when both have happened
						cancel()
						l.Release()
					default:
						l.Release()
						cancel()
					}
					synctest.Wait()
					switch {
					case err == nil && got != nil:
						granted++
						got.Release()
					case err == nil || got != nil:
						t.Fatalf("lease %v, error %v", got, err)
					}
					(<-behind).Release()
					wantEmpty(t, s)
				})
			}
			if name == "client" && (granted == 0 || granted == 200) {
				t.Errorf("got %d of 200 granted, want some and not all: grant and end did not cross", granted)
			}
		})
	}
}

func TestReleaseTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 10, time.Second)
		a, b := acquire(t, s, "m"), acquire(t, s, "m")
		time.Sleep(3 * time.Second)
		if held := a.Release(); held != 3*time.Second {
			t.Errorf("got held for %v, want 3 s", held)
		}
		time.Sleep(time.Second)
		if held := a.Release(); held != 3*time.Second {
			t.Errorf("second Release: got %v, want 3 s", held)
		}
		if n := s.Snapshot(); n.InFlight != 1 {
			t.Errorf("got %+v, want 1 in flight", n)
		}
		b.Release()
		wantEmpty(t, s)
	})
}

func TestLeaseOfNoScheduler(t *testing.T) {
	b := &backend.Backend{Name: "gpu"}
	l := &Lease{Backend: b}
	for range 2 {
		if held := l.Release(); held != 0 || l.Backend != b {
			t.Errorf("got held for %v on %+v, want 0 on the given server", held, l)
		}
	}
}

// The time a slot is held is a moving average: one unusual request does not change the Retry-After of all others.
func TestMeasuredService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(1, 0, time.Second)
		for _, held := range []time.Duration{4 * time.Second, 36 * time.Second} {
			l := acquire(t, s, "m")
			time.Sleep(held)
			l.Release()
		}
		l := acquire(t, s, "m")
		_, err := s.Acquire(t.Context(), Ask{Key: "k", Model: "m"})
		wantError(t, err, api.CodeQueueFull, 6*time.Second)
		l.Release()
	})
}
