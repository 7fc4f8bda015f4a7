package sched

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whenever requests arrive and end, the parts of all leases add up to the time in which at least one was in flight.
func TestThePartsOfTheGPUAddUpToItsTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			s := scheduler(3, 100, time.Hour)
			from := time.Now()
			var mu sync.Mutex
			var sum, held, busy time.Duration
			inUse, last, events := 0, from, 0
			count := func(more int) { // the same, by a simpler way: a look at every change
				mu.Lock()
				defer mu.Unlock()
				if now := time.Now(); inUse > 0 {
					busy += now.Sub(last)
				}
				last = time.Now()
				inUse += more
				events++
			}
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					random := rand.New(rand.NewPCG(seed, uint64(i)))
					for range 10 {
						time.Sleep(time.Duration(random.IntN(5_000_000)))
						l := acquire(t, s, []string{"a", "b"}[random.IntN(2)])
						count(1)
						time.Sleep(time.Duration(random.IntN(3_000_000)))
						running := l.GPU()
						count(-1)
						slot := l.Release()
						if l.GPU() != running || running > slot {
							t.Errorf("got %v so far and %v in the end, want the same and at most the %v for which the slot was held", running, l.GPU(), slot)
						}
						mu.Lock()
						sum += l.GPU()
						held += slot
						mu.Unlock()
					}
				})
			}
			all.Wait()
			// Each change rounds down by less than one nanosecond for each lease in flight.
			if lost := busy - sum; lost < 0 || lost > time.Duration(6*2*events) {
				t.Errorf("got %v as the sum of the parts, want the %v in which the backend was busy, of %v in all", sum, busy, time.Since(from))
			}
			if held <= busy {
				t.Errorf("got slots held for %v, want more than the %v in which the backend was busy: nothing ran at one time", held, busy)
			}
			wantEmpty(t, s)
		})
	}
}

func TestTheGPUIsDividedAmongThoseInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(2, 10, time.Hour)
		a := acquire(t, s, "m")
		time.Sleep(4 * time.Second)
		b := acquire(t, s, "other") // another model shares the backend too
		time.Sleep(2 * time.Second)
		if a.GPU() != 5*time.Second || b.GPU() != time.Second {
			t.Errorf("after 4 s as the only one and 2 s together: got %v and %v", a.GPU(), b.GPU())
		}
		a.Release()
		time.Sleep(10 * time.Second)
		a.Release() // once more, which changes nothing
		b.Release()
		if a.GPU() != 5*time.Second || b.GPU() != 11*time.Second {
			t.Errorf("in the end: got %v and %v, want 5 s and 11 s", a.GPU(), b.GPU())
		}
		// No lease has the time in which nothing ran, and a waiting request has no part yet.
		time.Sleep(time.Hour)
		full := []*Lease{acquire(t, s, "m"), acquire(t, s, "m")}
		next := make(chan *Lease)
		go func() { next <- acquire(t, s, "m") }()
		time.Sleep(6 * time.Second)
		full[0].Release()
		l := <-next
		time.Sleep(time.Second)
		l.Release()
		full[1].Release()
		if full[0].GPU() != 3*time.Second || full[1].GPU() != 3500*time.Millisecond || l.GPU() != 500*time.Millisecond {
			t.Errorf("got %v, %v and %v, want 3 s, 3.5 s and 0.5 s", full[0].GPU(), full[1].GPU(), l.GPU())
		}
		if l := (&Lease{}); l.GPU() != 0 {
			t.Errorf("a lease of no scheduler: got %v, want 0", l.GPU())
		}
	})
}
