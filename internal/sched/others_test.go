package sched

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// What a key used of a server that no other key wanted does not count elsewhere (docs/fairness.md: "The past is forgotten"),
// even if the queue of another server has not been empty meanwhile.
func TestWorkElsewhereIsNotHeldAgainstAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu, other := server("gpu", 2), server("other", 4)
		gpu.Set(stateWith(1, "chat"))
		other.Set(stateWith(1, "ingest"))
		s := New(backend.NewFleet(gpu, other), Options{MaxQueue: 1000, MaxWait: 10 * time.Minute})
		ctx, stop := context.WithCancel(t.Context())
		work := func(key, model string, hold time.Duration) {
			for ctx.Err() == nil {
				l, err := s.Acquire(ctx, Ask{Key: key, Model: model})
				if err != nil {
					return
				}
				time.Sleep(hold)
				l.Release()
			}
		}
		for i := range 6 {
			go work(fmt.Sprint("chat", i), "chat", 5*time.Second)
		}
		// One key works for three hours on a server that is otherwise idle.
		for range 4 {
			go func() {
				for i := 0; i < 3*60 && ctx.Err() == nil; i++ {
					l, err := s.Acquire(ctx, Ask{Key: "ingester", Model: "ingest"})
					if err != nil {
						return
					}
					time.Sleep(time.Minute)
					l.Release()
				}
			}()
		}
		time.Sleep(4 * time.Hour)
		began := time.Now()
		l, err := s.Acquire(ctx, Ask{Key: "ingester", Model: "chat"})
		if err != nil {
			t.Errorf("got an error after %v, want a slot: %v", time.Since(began), err)
		} else {
			if waited := time.Since(began); waited > time.Minute {
				t.Errorf("it waited for %v, want about the 10 s of each other key", waited)
			}
			l.Release()
		}
		stop()
		time.Sleep(time.Hour)
	})
}

// A model that cannot be loaded makes its backend drain each time. A key that asks for it again and again must not stop the others.
func TestLoadsThatFailCostOthersLittle(t *testing.T) {
	for _, hold := range []time.Duration{500 * time.Millisecond, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, hold)
			load := c.s.o.Load
			c.s.o.Load = func(ctx context.Context, b *backend.Backend, a *Ask) error {
				if a.Model == "b" {
					c.loads.Add(1)
					time.Sleep(3 * time.Second)
					return errors.New("unsupported model architecture")
				}
				return load(ctx, b, a)
			}
			go func() { // the probe
				for c.ctx.Err() == nil {
					time.Sleep(5 * time.Second)
					state := c.gpu.State()
					state.Checked = time.Now()
					c.gpu.Set(state)
				}
			}()
			alone := c.in(20 * time.Minute)
			go func() {
				for c.ctx.Err() == nil {
					c.try(Ask{Key: "attacker", Model: "b"}, time.Hour, 10*time.Millisecond)
					time.Sleep(20 * time.Millisecond)
				}
			}()
			time.Sleep(time.Minute)
			got := c.in(20*time.Minute) / alone
			t.Logf("requests of %v: the others keep %.3f, %d loads", hold, got, c.loads.Load())
			if want := 0.95 * 8 / 9; got < want {
				t.Errorf("requests of %v: the others keep %.3f, want %.3f", hold, got, want)
			}
			c.stop()
			time.Sleep(time.Hour)
			wantEmpty(t, c.s)
		})
	}
}

// A vote of a key that has not been seen for a day does not outweigh what all keys of today see.
func TestVotesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 0)
		gpu.Set(stateWith(1, "a"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 1000, MaxWait: time.Hour})
		run := func(key string, inside time.Duration) {
			var all []*Lease
			srv := s.serverLocked(gpu)
			for range srv.limit(srv.model("a")) {
				all = append(all, lease(t, s, Ask{Key: key, Model: "a", Plain: true}))
			}
			time.Sleep(time.Second)
			for _, l := range all {
				l.NoteWaitInside(inside)
				l.Release()
			}
		}
		for i := range 15 {
			run(fmt.Sprint("yesterday", i), 0)
		}
		time.Sleep(24 * time.Hour) // OLLAMA_NUM_PARALLEL was made 1
		for i := range 200 {
			run(fmt.Sprint("today", i%3), 2*time.Second)
		}
		if got := s.serverLocked(gpu).model("a").found; got > 1 {
			t.Errorf("after 200 rounds in which all three keys waited inside Ollama there are still %d slots", got)
		}
	})
}

// One key with very short requests, which hardly wait whatever the slots, does not raise the slots against what most keys have seen.
func TestOneKeyDoesNotRaiseTheSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 0)
		gpu.Set(stateWith(1, "a"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 1000, MaxWait: time.Hour})
		srv := s.serverLocked(gpu)
		round := func(key string, hold, inside time.Duration) {
			var all []*Lease
			for range srv.limit(srv.model("a")) {
				all = append(all, lease(t, s, Ask{Key: key, Model: "a", Plain: true}))
			}
			time.Sleep(hold)
			for _, l := range all {
				l.NoteWaitInside(inside)
				l.Release()
			}
		}
		for i := range 7 {
			round(fmt.Sprint("other", i), 10*time.Second, 5*time.Second)
		}
		before := srv.model("a").found
		for range 20 * cleanRuns {
			round("attacker", 10*time.Millisecond, 40*time.Millisecond)
		}
		if got := srv.model("a").found; got > before {
			t.Errorf("seven keys have seen that %d slots are too many, and one key has made them %d", before+1, got)
		}
	})
}

// pausing is a crowd of a few keys with pauses between their requests, so that the backend has idle moments.
func pausing(t *testing.T, victims int, hold, pause time.Duration) *crowd {
	c := &crowd{gpu: server("gpu", 4)}
	names := []string{"a", "b", "c", "d"}
	c.gpu.Set(stateWith(1, names...))
	fleet := backend.NewFleet(c.gpu)
	c.s = New(fleet, Options{MaxQueue: 1000, MaxWait: 24 * time.Hour, Load: func(ctx context.Context, b *backend.Backend, a *Ask) error {
		c.loads.Add(1)
		b.Set(stateWith(0, names...))
		time.Sleep(harmLoad)
		state := stateWith(0, names...)
		state.Loaded[a.Model] = backend.Loaded{}
		b.Set(state)
		fleet.Refresh()
		return ctx.Err()
	}})
	c.s.serverLocked(c.gpu).fits = 1
	c.ctx, c.stop = context.WithCancel(t.Context())
	for i := range victims {
		go func() {
			for c.ctx.Err() == nil {
				l, err := c.s.Acquire(c.ctx, Ask{Key: fmt.Sprint("victim", i), Model: "a"})
				if err != nil {
					return
				}
				time.Sleep(hold/2 + rand.N(hold))
				l.Release()
				c.served.Add(1)
				time.Sleep(pause/2 + rand.N(pause+1))
			}
		}()
	}
	time.Sleep(10 * time.Minute)
	return c
}

// Four keys that pause between their requests, so that the backend has idle moments, keep 0.95 of their fair share next to one key that
// asks for another model again and again. (Issue 14 has the figure for eight that are always busy.)
func TestIdleMomentsAreNoInvitation(t *testing.T) {
	for _, victims := range []int{1, 2, 4} {
		synctest.Test(t, func(t *testing.T) {
			c := pausing(t, victims, 500*time.Millisecond, 500*time.Millisecond)
			alone := c.in(20 * time.Minute)
			go func() {
				for i := 0; c.ctx.Err() == nil; i++ {
					c.try(Ask{Key: "attacker", Model: string(rune('b' + i%3))}, time.Hour, 10*time.Millisecond)
					time.Sleep(20 * time.Millisecond)
				}
			}()
			time.Sleep(time.Minute)
			got, want := c.in(20*time.Minute)/alone, 0.95*float64(victims)/float64(victims+1)
			if got < want {
				t.Errorf("%d others keep %.3f, want %.3f; %d loads in 21 minutes", victims, got, want, c.loads.Load())
			}
			c.stop()
			time.Sleep(time.Hour)
		})
	}
}

// A single user who picks a large model by mistake, cancels, and picks another one waits only for the second.
func TestASingleUserMayCancelALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(1, "small", "large"))
		s, done := schedulerWithLoads(Options{}, gpu)
		s.serverLocked(gpu).fits = 1
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := s.Acquire(ctx, Ask{Key: "anna", Model: "large"}); err == nil {
			t.Fatal("the load of a minute took two seconds")
		}
		cancel()
		began := time.Now()
		l := lease(t, s, Ask{Key: "anna", Model: "small"})
		if waited := time.Since(began); waited > time.Minute {
			t.Errorf("with no other user, the model that was loaded before came after %v, want at most a minute; loads: %v", waited, *done)
		}
		l.Release()
		time.Sleep(time.Hour)
	})
}

// What a key owes for a change that it left behind is not forgiven if it returns while no request waits.
func TestADebtOutlastsAMomentWithoutAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 1)
		gpu.Set(stateWith(1, "a", "b"))
		s, _ := schedulerWithLoads(Options{}, gpu)
		s.serverLocked(gpu).fits = 1
		for _, key := range []string{"debtor", "other"} {
			l := lease(t, s, Ask{Key: key, Model: "a"})
			time.Sleep(time.Second)
			l.Release()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, _ = s.Acquire(ctx, Ask{Key: "debtor", Model: "b"})
		cancel()
		time.Sleep(5 * time.Minute)
		l := lease(t, s, Ask{Key: "other", Model: "a"}) // changes back
		time.Sleep(time.Second)
		l.Release()
		l = lease(t, s, Ask{Key: "debtor", Model: "a"}) // no request waits
		time.Sleep(time.Second)
		l.Release()
		l = lease(t, s, Ask{Key: "other", Model: "a"})
		l.Release()
		s.mu.Lock()
		defer s.mu.Unlock()
		if d, o := s.payers["debtor"], s.payers["other"]; d.due()-o.due() < float64(time.Minute) {
			t.Errorf("got the debtor %v behind, want more than a minute", time.Duration(d.due()-o.due()))
		}
	})
}
