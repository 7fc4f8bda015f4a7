package sched

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/backend"
)

// embedding is a request for the embeddings of many texts.
func embedding(key string, texts int) Ask {
	return Ask{Key: key, Model: "a", Embeds: true, Plain: true, Texts: texts}
}

// A request with many texts is admitted when one slot is free, takes each that becomes free, and no other starts before it has all. It has
// a part of the server for each slot, and all parts together are the time that passed.
func TestManyTextsTakeSlotsAsTheyBecomeFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := scheduler(4, 100, time.Hour)
		var others []*Lease
		for i := range 3 {
			others = append(others, lease(t, s, Ask{Key: fmt.Sprint("other", i), Model: "a"}))
		}
		many := lease(t, s, embedding("many", 100)) // takes the last slot
		var after *Lease
		go func() { after = lease(t, s, Ask{Key: "after", Model: "a"}) }()
		for i, o := range others {
			time.Sleep(time.Second)
			o.Release()
			synctest.Wait()
			if got := s.Models()[0].InFlight; got != 4 {
				t.Errorf("after %d releases: got %d slots in use, want 4", i+1, got)
			}
			if after != nil {
				t.Fatalf("after %d releases: a later request is admitted before the one with many texts has its slots", i+1)
			}
		}
		time.Sleep(time.Second)
		many.Release()
		synctest.Wait()
		if after == nil {
			t.Fatal("the later request is not admitted when the one with many texts is done")
		}
		time.Sleep(time.Second)
		after.Release()
		wantGPU(t, "many", many, (1+2+3+4)*time.Second/4)
		if got, want := many.Charged(), (1+2+3+4)*time.Second; got != want {
			t.Errorf("got %v charged, want %v: the time of each slot, while another request waited", got, want)
		}
		all := many.GPU() + after.GPU()
		for _, o := range others {
			all += o.GPU()
		}
		if all > 5*time.Second || all < 5*time.Second-time.Microsecond {
			t.Errorf("got %v of the server on all rows, want the 5 s that passed", all)
		}
		wantEmpty(t, s)
	})
}

// Few texts take as many slots as there are texts, a model that only makes embeddings has one slot, and slots are given back one by one.
func TestTextsTakeNoMoreSlotsThanThereAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 4)
		gpu.Set(stateWith(2, "a", "embed"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 100, MaxWait: time.Hour})
		for _, c := range []struct {
			ask  Ask
			want int
		}{
			{embedding("k", 0), 1},
			{embedding("k", 1), 1},
			{embedding("k", 3), 3},
			{embedding("k", 9), 4},
			{Ask{Key: "k", Model: "embed", Embeds: true, Texts: 9}, 1},
		} {
			l := lease(t, s, c.ask)
			if l.slots != c.want {
				t.Errorf("%d texts for %q: got %d slots, want %d", c.ask.Texts, c.ask.Model, l.slots, c.want)
			}
			l.Release()
		}
		wantEmpty(t, s)
	})
}

// Keys that take all slots with each request have their share of slot time and not of requests.
func TestManyTextsPayForTheirSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, time.Second)
		alone := c.in(20 * time.Minute)
		for i := range 2 {
			for range 4 {
				go func() {
					for c.ctx.Err() == nil {
						c.try(embedding(fmt.Sprint("attacker", i), 100), time.Hour, 3*time.Second)
					}
				}()
			}
		}
		time.Sleep(time.Minute)
		got := c.in(time.Hour) / 3 / alone
		t.Logf("the others keep %.3f", got)
		if want := 0.95 * 8 / 10; got < want {
			t.Errorf("the others keep %.3f, want %.3f", got, want)
		}
		c.stop()
		time.Sleep(time.Hour)
		wantEmpty(t, c.s)
	})
}

// Whatever the mix of texts, clients that leave and limits of a server: every request is served, no more slots are in use than there
// are, and the parts of all never exceed the time that passed.
func TestTextsNeverBlockEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpu := server("gpu", 0)
		gpu.Set(stateWith(2, "a", "b"))
		s := New(backend.NewFleet(gpu), Options{MaxQueue: 1000, MaxWait: 10 * time.Hour})
		began := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		var sum time.Duration
		for i := range 40 {
			all.Go(func() {
				for j := range 20 {
					a := embedding(fmt.Sprint(i%7), (i*j)%9)
					a.Model = string("ab"[i%2])
					l, err := s.Acquire(t.Context(), a)
					if err != nil {
						t.Error(err)
						return
					}
					for _, st := range s.Models() {
						if st.InFlight > st.Slots {
							t.Errorf("got %d slots of %s in use, want no more than %d", st.InFlight, st.Model, st.Slots)
						}
					}
					time.Sleep(time.Duration(1+(i+j)%5) * time.Second)
					l.Release()
					mu.Lock()
					sum += l.GPU()
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if passed := time.Since(began); sum > passed || sum < passed-passed/100 {
			t.Errorf("got %v on all rows, want the %v that passed", sum, passed)
		}
		wantEmpty(t, s)
	})
}

// No request waits longer than the bound of docs/fairness.md for requests that may have all slots, and none is refused.
func TestTheWaitIsBoundedWithManyTexts(t *testing.T) {
	const longest = time.Minute
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(9, seed))
			slots, keys, own := 1+random.IntN(4), 2+random.IntN(6), random.IntN(4)
			s := scheduler(slots, 1_000_000, 1000*time.Hour)
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for k := range keys - 1 {
				dice := rand.New(rand.NewPCG(seed, uint64(k)))
				for range 1 + random.IntN(20) {
					texts, hold := dice.IntN(6), time.Duration(1+dice.Int64N(int64(longest)))
					all.Go(func() {
						for ctx.Err() == nil {
							a := embedding(fmt.Sprint("other", k), texts)
							askFor(t, s, a, hold)
						}
					})
				}
			}
			time.Sleep(time.Duration(random.Int64N(int64(20 * longest))))
			for range own {
				all.Go(func() { askFor(t, s, embedding("mine", 6), longest) })
			}
			synctest.Wait()
			waited := askFor(t, s, embedding("mine", 6), time.Second)
			if w := time.Duration(2+(keys-1)*(own+2)+own) * longest; waited > w {
				t.Errorf("seed %d: with %d keys on %d slots and %d of its own before it, it waited for %v, the bound is %v", seed, keys, slots, own, waited, w)
			}
			cancel()
			all.Wait()
			wantEmpty(t, s)
		})
	}
}
