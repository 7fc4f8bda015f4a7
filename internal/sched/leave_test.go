package sched

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A client that leaves a load is booked what the load had of the backend until then, and the rest with its payer's next request; its
// payer's counter owes what the load took in the end.
func TestALoadThatIsLeftIsBookedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(1, "a", "b"))
		s, _ := schedulerWithLoads(Options{}, gpu) // of a minute each
		s.serverLocked(gpu).fits = 1
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		l, err := s.Acquire(ctx, Ask{Key: "leaves", Model: "b"})
		cancel()
		if err == nil || l == nil {
			t.Fatalf("got %v, %v, want a lease that holds nothing and an error", l, err)
		}
		if l.Loading != 2*time.Second || l.GPU() != 2*time.Second {
			t.Errorf("when it left: got loading %v and gpu_ms %v, want 2 s", l.Loading, l.GPU())
		}
		time.Sleep(time.Hour)
		s.mu.Lock()
		if got, want := time.Duration(s.payers["leaves"].owed), time.Minute; got < want {
			t.Errorf("its payer owes %v, want at least %v", got, want)
		}
		s.mu.Unlock()
		for i, want := range []time.Duration{58*time.Second + time.Second, time.Second} {
			l := lease(t, s, Ask{Key: "leaves", Model: "b"})
			time.Sleep(time.Second)
			l.Release()
			if got := l.GPU(); got != want {
				t.Errorf("request %d after it: got gpu_ms %v, want %v", i+1, got, want)
			}
		}
	})
}

// A load that brings back what another payer has pushed out is that payer's, if the model was in use: if the server was idle for a stint,
// each pays for its own load.
func TestALoadThatBringsBackIsTheEvictors(t *testing.T) {
	const load = time.Minute
	for name, c := range map[string]struct {
		idle       time.Duration
		back, next time.Duration // gpu_ms of the request behind the load back, and of the evictor's next one, less what they ran for
	}{
		"in use": {30 * time.Second, 0, load},
		"idle":   {time.Hour, load, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gpu := server("gpu", 4)
				gpu.Set(stateWith(1, "a", "b"))
				s, _ := schedulerWithLoads(Options{}, gpu) // of a minute each
				s.serverLocked(gpu).fits = 1
				run := func(key, model string, want time.Duration) {
					t.Helper()
					l := lease(t, s, Ask{Key: key, Model: model})
					time.Sleep(time.Second)
					l.Release()
					if got := l.GPU() - time.Second; got != want {
						t.Errorf("%s for %s: got gpu_ms %v besides its second, want %v", key, model, got, want)
					}
				}
				run("victim", "a", 0)
				time.Sleep(c.idle)
				run("evictor", "b", load)
				run("victim", "a", c.back)
				run("evictor", "a", c.next)
				run("evictor", "a", 0)
				s.mu.Lock()
				defer s.mu.Unlock()
				behind := time.Duration(s.payers["evictor"].counter - s.payers["victim"].counter)
				if taken := c.next > 0; taken != (behind >= load) {
					t.Errorf("the evictor is %v behind; want the load back: %v", behind, taken)
				}
			})
		})
	}
}

// A grant that crossed with the leaving of its client is on no row: what its payer has caused waits for the next one.
func TestWhatAPayerHasCausedWaitsForARow(t *testing.T) {
	s := scheduler(1, 10, time.Hour)
	for _, c := range []struct {
		served bool
		want   time.Duration // that is left for later
	}{{false, time.Minute}, {true, 0}} {
		l := acquire(t, s, "m")
		s.mu.Lock()
		s.payers["k"].debt = time.Minute
		l.releaseLocked(time.Now(), c.served)
		if got := s.payers["k"].debt; got != c.want {
			t.Errorf("served %v: %v is left, want %v", c.served, got, c.want)
		}
		s.mu.Unlock()
	}
}

// Twenty keys of one payer that ask for a cold model and leave its load, at one time or one after the other, cause one load in each stint.
func TestTwentyLeavesAreOneLoad(t *testing.T) {
	for name, pause := range map[string]time.Duration{"at one time": 0, "one after the other": 2500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, 500*time.Millisecond)
				var all sync.WaitGroup
				var mu sync.Mutex
				var booked time.Duration
				began := time.Now()
				for i := range 20 {
					all.Go(func() {
						ctx, leave := context.WithTimeout(c.ctx, 2400*time.Millisecond)
						defer leave()
						l, err := c.s.Acquire(ctx, Ask{Key: fmt.Sprint("key", i), Payer: "team", Model: string(rune('b' + i%3))})
						if err == nil {
							l.Release()
						}
						if l != nil {
							mu.Lock()
							booked += l.GPU()
							mu.Unlock()
						}
					})
					time.Sleep(pause)
				}
				all.Wait()
				time.Sleep(5 * time.Second) // what has begun is done
				c.s.mu.Lock()
				stintTime := c.s.worth(c.s.serverLocked(c.gpu), "b")
				c.s.mu.Unlock()
				caused := c.loads.Load() // of these every second one brings the crowd's model back
				most := 2 * (1 + int64(time.Since(began)/stintTime))
				if caused < 1 || caused > most {
					t.Errorf("%d loads in %v, want 1 to %d: a stint is %v", caused, time.Since(began), most, stintTime)
				}
				if booked <= 0 {
					t.Errorf("%d loads: got %v booked for them, want more than 0", caused, booked)
				}
				c.stop()
				time.Sleep(time.Hour)
			})
		})
	}
}
