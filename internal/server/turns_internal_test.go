package server

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A payer with many large bodies waits behind one of each other payer: only its own bodies wait for all of them.
func TestLargeBodiesAreReadInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := &turns{places: 1}
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		read := func(payer string, takes time.Duration) {
			all.Go(func() {
				_ = gate.do(t.Context(), payer, func() error {
					time.Sleep(takes)
					mu.Lock()
					defer mu.Unlock()
					order = append(order, payer)
					return nil
				})
			})
			synctest.Wait()
		}
		for range 5 {
			read("many", time.Second)
		}
		read("one", time.Second)
		read("two", 2*time.Second)
		time.Sleep(time.Second + time.Millisecond) // the first body of "many" is read
		read("two", time.Second)
		all.Wait()
		// Each has had nothing when its first body comes, and "many" has read one then. "two" takes longer.
		want := []string{"many", "one", "two", "many", "many", "two", "many", "many"}
		if !slices.Equal(order, want) {
			t.Errorf("got the order %v, want %v", order, want)
		}
		if gate.inUse != 0 || len(gate.payers) != 0 {
			t.Errorf("got %d places in use and %d payers afterwards, want none", gate.inUse, len(gate.payers))
		}
	})
}

// A client that leaves while its body waits frees its turn.
func TestAClientLeavesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := &turns{places: 1}
		hold := make(chan struct{})
		go func() { _ = gate.do(t.Context(), "reads", func() error { <-hold; return nil }) }()
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			left <- gate.do(ctx, "leaves", func() error { t.Error("the body of a client that has left was read"); return nil })
		}()
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("got the error %v, want that of the context", err)
		}
		close(hold)
		synctest.Wait()
		if gate.inUse != 0 || len(gate.payers) != 0 {
			t.Errorf("got %d places in use and %d payers afterwards, want none", gate.inUse, len(gate.payers))
		}
	})
}
