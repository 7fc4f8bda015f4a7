package sched

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// crowd is eight keys that keep one backend busy with model "a", and what they get.
type crowd struct {
	s      *Scheduler
	gpu    *backend.Backend
	served atomic.Int64
	used   atomic.Int64 // gpu_ms of those that were served, and of the keys that disturb them
	theirs atomic.Int64
	loads  atomic.Int64
	stop   context.CancelFunc
	ctx    context.Context
}

const harmLoad = 3 * time.Second

// newCrowd has a backend of four slots whose memory holds one model. hold is how long a request of the eight takes.
func newCrowd(t *testing.T, hold time.Duration) *crowd {
	c := &crowd{gpu: server("gpu", 4)}
	names := []string{"a", "b", "c", "d"}
	c.gpu.Set(stateWith(1, names...))
	fleet := backend.NewFleet(c.gpu)
	c.s = New(fleet, Options{MaxQueue: 1000, MaxWait: 24 * time.Hour, Load: func(ctx context.Context, b *backend.Backend, a *Ask) error {
		c.loads.Add(1)
		state := stateWith(0, names...)
		b.Set(state) // Ollama first unloads its models, and ends the load with its request
		select {
		case <-ctx.Done():
		case <-time.After(harmLoad):
			state = stateWith(0, names...)
			state.Loaded[a.Model] = backend.Loaded{}
			b.Set(state)
		}
		fleet.Refresh()
		return ctx.Err()
	}})
	c.s.serverLocked(c.gpu).fits = 1
	c.ctx, c.stop = context.WithCancel(t.Context())
	for i := range 8 {
		go func() {
			for c.ctx.Err() == nil {
				l, err := c.s.Acquire(c.ctx, Ask{Key: fmt.Sprint("victim", i), Model: "a"})
				if err != nil {
					return
				}
				time.Sleep(hold)
				l.Release()
				c.served.Add(1)
				c.used.Add(int64(l.GPU()))
			}
		}()
	}
	time.Sleep(10 * time.Minute) // its model has been there for long
	return c
}

// in is how many requests of the eight are served in d.
func (c *crowd) in(d time.Duration) float64 {
	before := c.served.Load()
	time.Sleep(d)
	return float64(c.served.Load() - before)
}

// try asks for a model, gives up after patience, and holds the slot for hold if it gets one. It reports whether it did.
func (c *crowd) try(a Ask, patience, hold time.Duration) bool {
	ctx, leave := context.WithTimeout(c.ctx, patience)
	defer leave()
	l, err := c.s.Acquire(ctx, a)
	if l != nil {
		defer func() { c.theirs.Add(int64(l.GPU())) }()
	}
	if err != nil {
		return false
	}
	time.Sleep(hold)
	l.Release()
	return true
}

// Whatever one or two keys do with models that are not loaded, the others keep 0.95 of their fair share.
func TestChangesOnPurposeCostOthersLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	const millisecond = time.Millisecond
	attacks := map[string]func(c *crowd, key string, i int){
		"asks, and leaves before it is loaded": func(c *crowd, key string, _ int) { c.try(Ask{Key: key, Model: "b"}, 2400*millisecond, 0) },
		"leaves at once":                       func(c *crowd, key string, _ int) { c.try(Ask{Key: key, Model: "b"}, 20*millisecond, 0) },
		"leaves while the backend drains":      func(c *crowd, key string, _ int) { c.try(Ask{Key: key, Model: "b"}, 400*millisecond, 0) },
		"another model each time": func(c *crowd, key string, i int) {
			c.try(Ask{Key: key, Model: string(rune('b' + i%3))}, 2400*millisecond, 0)
		},
		"waits for long, leaves during the load": func(c *crowd, key string, _ int) {
			c.try(Ask{Key: key, Model: "b"}, 80*time.Second, 0)
		},
		"stays, and takes one token": func(c *crowd, key string, i int) {
			c.try(Ask{Key: key, Model: string(rune('b' + i%3))}, time.Hour, 10*millisecond)
		},
		"another key of the same payer each time": func(c *crowd, key string, i int) {
			c.try(Ask{Key: fmt.Sprint(key, i), Payer: key, Model: "b"}, 2400*millisecond, 0)
		},
		"other load options each time": func(c *crowd, key string, i int) {
			c.try(Ask{Key: key, Model: "a", Options: fmt.Appendf(nil, `{"num_ctx":%d}`, 2048+i%3)}, time.Hour, 10*millisecond)
		},
		"other load options, and leaves": func(c *crowd, key string, i int) {
			c.try(Ask{Key: key, Model: "a", Options: fmt.Appendf(nil, `{"num_ctx":%d}`, 2048+i%3)}, 2400*millisecond, 0)
		},
	}
	for name, attack := range attacks {
		for _, hold := range []time.Duration{500 * millisecond, 10 * time.Second} {
			for attackers := 1; attackers <= 2; attackers++ {
				synctest.Test(t, func(t *testing.T) {
					c := newCrowd(t, hold)
					alone := c.in(20 * time.Minute)
					for n := range attackers {
						go func() {
							for i := 0; c.ctx.Err() == nil; i++ {
								attack(c, fmt.Sprint("attacker", n), i)
								time.Sleep(20 * millisecond)
							}
						}()
					}
					time.Sleep(time.Minute)
					got, want := c.in(20*time.Minute)/alone, 0.95*8/float64(8+attackers)
					t.Logf("%s, %d of them, requests of %v: the others keep %.3f (at least %.3f), %d loads", name, attackers, hold, got, want, c.loads.Load())
					if got < want {
						t.Errorf("%s, %d of them, requests of %v: the others keep %.3f, want %.3f", name, attackers, hold, got, want)
					}
					c.stop()
					time.Sleep(time.Hour)
					wantEmpty(t, c.s)
				})
			}
		}
	}
}

// The time of the backend that others are booked for a request is the same as without a key that alternates its load-time options:
// each load that this key causes is its own.
func TestReloadsAreNotInOthersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 500*time.Millisecond)
		each := func(d time.Duration) time.Duration {
			used, served := c.used.Load(), c.in(d)
			return time.Duration(float64(c.used.Load()-used) / served)
		}
		alone := each(20 * time.Minute)
		loads := c.loads.Load()
		go func() {
			for i := 0; c.ctx.Err() == nil; i++ {
				c.try(Ask{Key: "attacker", Model: "a", Options: fmt.Appendf(nil, `{"num_ctx":%d}`, 2048+i%3)}, time.Hour, 10*time.Millisecond)
				time.Sleep(20 * time.Millisecond)
			}
		}()
		with := each(2 * time.Hour)
		caused := (c.loads.Load() - loads) / 2 // the crowd loads its model again after each
		theirs := time.Duration(c.theirs.Load())
		t.Logf("a request of others is booked %v, and %v without it; %d loads are booked %v", with, alone, caused, theirs)
		if most := alone * 102 / 100; with > most {
			t.Errorf("a request of others is booked %v, want at most %v", with, most)
		}
		if want := time.Duration(2*caused-1) * harmLoad; theirs < want { // the last is booked with the next request
			t.Errorf("%d loads and those back are booked %v, want at least %v", caused, theirs, want)
		}
		c.stop()
		time.Sleep(time.Hour)
	})
}

// A client that gives up before its model is loaded and tries again gets its answer in the end.
func TestAnImpatientClientGetsItsModel(t *testing.T) {
	for _, patience := range []time.Duration{time.Second, 1900 * time.Millisecond, 2 * time.Second, 3 * time.Second} {
		for _, pause := range []time.Duration{0, 100 * time.Millisecond, 700 * time.Millisecond} {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, time.Second)
				start := time.Now()
				tries := 1
				for ; !c.try(Ask{Key: "impatient", Model: "b"}, patience, time.Second) && tries < 1000; tries++ {
					time.Sleep(pause)
				}
				if waited := time.Since(start); waited > time.Minute {
					t.Errorf("with a patience of %v and a pause of %v it has its answer after %d tries and %v, want a minute at most", patience, pause, tries, waited)
				}
				c.stop()
				time.Sleep(time.Hour)
			})
		}
	}
}

// Where two payers wait for the same model, the change counts as caused by the one that may cause it, and not by one that is barred and
// goes before it. Otherwise the other is never barred, and may cause the next change at once, and the next.
func TestABarredPayerIsNoCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, time.Second)
		c.stop() // only the moment after the eight is of interest
		time.Sleep(2 * time.Second)
		after := &crowd{s: c.s, ctx: t.Context()}
		c.s.mu.Lock()
		c.s.payerLocked(&Ask{Key: "free"}).counter = 1e15 // the other goes first
		c.s.mu.Unlock()
		if !after.try(Ask{Key: "barred", Model: "b"}, time.Minute, time.Second) {
			t.Fatal("the first change: not served")
		}
		loads := c.loads.Load()
		go after.try(Ask{Key: "barred", Model: "c"}, time.Hour, time.Second)
		synctest.Wait()
		if got := c.loads.Load(); got != loads {
			t.Fatalf("%d loads for a payer that is barred, want none", got-loads)
		}
		if !after.try(Ask{Key: "free", Model: "c"}, time.Minute, time.Second) {
			t.Fatal("the second change: not served")
		}
		c.s.mu.Lock()
		barred := time.Now().Before(c.s.payers["free"].barredUntil)
		c.s.mu.Unlock()
		if !barred {
			t.Error("the payer that caused the second change may cause the next, want it barred")
		}
		time.Sleep(time.Hour)
		wantEmpty(t, c.s)
	})
}

// A load that was taken to have room has pushed out a model for which requests are in flight: Ollama loads that again for them, and the
// other for the next request of that, and so on. Nothing is begun until they have ended, and then only for what is loaded.
func TestAModelInUseThatWasPushedOutSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(1, "a", "b"))
		fleet := backend.NewFleet(gpu)
		s := New(fleet, Options{MaxQueue: 100, MaxWait: time.Hour, Load: func(_ context.Context, b *backend.Backend, a *Ask) error {
			time.Sleep(15 * time.Second)
			state := stateWith(0, "a", "b")
			state.Loaded[a.Model] = backend.Loaded{}
			b.Set(state)
			fleet.Refresh()
			return nil
		}})
		before := lease(t, s, Ask{Key: "k", Model: "a"})
		cause := lease(t, s, Ask{Key: "l", Model: "b"})
		var waited [2]time.Duration
		var all sync.WaitGroup
		for i, model := range []string{"a", "b"} {
			all.Go(func() { waited[i] = askFor(t, s, Ask{Key: model, Model: model}, time.Second) })
		}
		synctest.Wait()
		if n := s.Snapshot(); n.InFlight != 2 || n.Waiting != 2 {
			t.Errorf("while a model that was pushed out is in use, %d are in flight and %d wait, want 2 and 2", n.InFlight, n.Waiting)
		}
		time.Sleep(10 * time.Second)
		cause.Release()
		before.Release()
		synctest.Wait()
		if n := s.Snapshot(); n.InFlight != 1 || n.ByModel["b"] != 1 {
			t.Errorf("afterwards %d are in flight, want 1 for the model that is loaded: %+v", n.InFlight, n)
		}
		all.Wait()
		if waited[0] <= waited[1] {
			t.Errorf("got the model that was pushed out served after %v, want later than the loaded one, %v", waited[0], waited[1])
		}
		wantEmpty(t, s)
	})
}
