package sched

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkUncontended is what the scheduler adds to a request that need not wait.
func BenchmarkUncontended(b *testing.B) {
	s := scheduler(4, 1024, time.Minute)
	for b.Loop() {
		l, err := s.Acquire(context.Background(), Ask{Key: "k", Model: "m"})
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}

// BenchmarkDispatch is one release while b.N requests of 100 keys wait: the grant of the next one and its release.
func BenchmarkDispatch(b *testing.B) {
	for _, waiting := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			s := scheduler(4, 1_000_000, time.Hour)
			var leases []*Lease
			for range 4 {
				l, _ := s.Acquire(context.Background(), Ask{Key: "first", Model: "m"})
				leases = append(leases, l)
			}
			s.mu.Lock()
			ask := func(i int) {
				a := &Ask{Key: fmt.Sprint("key", i%100), Model: "m"}
				s.enqueueLocked(s.payerLocked(a), a, time.Now())
			}
			for i := range waiting {
				ask(i)
			}
			s.mu.Unlock()
			i := 0
			for b.Loop() {
				s.mu.Lock()
				ask(i)
				i++
				leases[0].releaseLocked(time.Now(), true)
				leases[0] = s.running[len(s.running)-1]
				s.mu.Unlock()
			}
		})
	}
}

// BenchmarkParallel is many requests at one time that need not wait.
func BenchmarkParallel(b *testing.B) {
	s := scheduler(10_000, 1024, time.Minute)
	var n sync.Mutex
	keys := 0
	b.RunParallel(func(pb *testing.PB) {
		n.Lock()
		keys++
		a := Ask{Key: fmt.Sprint(keys), Model: "m"}
		n.Unlock()
		for pb.Next() {
			l, err := s.Acquire(context.Background(), a)
			if err != nil {
				b.Error(err)
				return
			}
			l.Release()
		}
	})
}

// BenchmarkPrompts is BenchmarkUncontended with the counts of a prompt, while three other requests run.
func BenchmarkPrompts(b *testing.B) {
	s := scheduler(4, 100, time.Hour)
	for range 3 {
		l, err := s.Acquire(b.Context(), Ask{Key: "other", Model: "m"})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Release()
	}
	for b.Loop() {
		l, err := s.Acquire(b.Context(), Ask{Key: "k", Model: "m"})
		if err != nil {
			b.Fatal(err)
		}
		l.NoteTokens(Prompt{Estimate: 1000, Likely: 1000}, 1000, 10, time.Millisecond)
		l.NotePrompt(time.Second)
		l.Release()
	}
}
