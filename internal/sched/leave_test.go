package sched

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A client that leaves a load is booked its whole expected length, as far as loads were measured there; its payer's counter owes what the
// load took in the end.
func TestALoadThatIsLeftIsBookedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(has(1, "a", "b", "c"))
		s, _ := loads(Options{}, gpu) // of a minute each
		s.placeLocked(gpu).fits = 1
		for i, c := range []struct {
			model string
			want  time.Duration // that is booked
		}{{"b", 2 * time.Second}, {"c", time.Minute}} {
			key := fmt.Sprint("leaves", i)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			l, err := s.Acquire(ctx, Ask{Key: key, Model: c.model})
			cancel()
			if err == nil || l == nil {
				t.Fatalf("%s: got %v, %v, want a lease that holds nothing and an error", c.model, l, err)
			}
			if l.Loading != c.want || l.GPU() != c.want {
				t.Errorf("%s: got loading %v and gpu_ms %v, want %v", c.model, l.Loading, l.GPU(), c.want)
			}
			time.Sleep(time.Hour)
			s.mu.Lock()
			if got, want := time.Duration(s.clients[key].owed), time.Minute; got < want {
				t.Errorf("%s: its payer owes %v, want at least %v", c.model, got, want)
			}
			s.mu.Unlock()
		}
	})
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
				stint := c.s.worth(c.s.placeLocked(c.gpu), "b")
				c.s.mu.Unlock()
				caused := c.loads.Load() // of these every second one brings the crowd's model back
				most := 2 * (1 + int64(time.Since(began)/stint))
				if caused < 1 || caused > most {
					t.Errorf("%d loads in %v, want 1 to %d: a stint is %v", caused, time.Since(began), most, stint)
				}
				if booked <= 0 {
					t.Errorf("%d loads, and nothing is booked for them", caused)
				}
				c.stop()
				time.Sleep(time.Hour)
			})
		})
	}
}
