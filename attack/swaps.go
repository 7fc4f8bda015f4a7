//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

const swapWindow = 12 * time.Second // of several stints

var swaps = []attack{
	{
		name: "swap-fresh", what: "ask for a cold model of a gateway that has just been started", queues: 2, lasts: 8 * time.Second,
		fresh: true, real: true,
		run: swap(time.Minute, func(int) string { return "cold1" }),
	},
	{
		name: "swap-leave", what: "ask for a cold model, leave before it is loaded, and repeat", queues: 2, lasts: swapWindow, real: true,
		run: swap(1200*time.Millisecond, func(int) string { return "cold1" }),
	},
	{
		name: "swap-at-once", what: "the same, leaving after 50 ms", queues: 2, lasts: swapWindow,
		run: swap(50*time.Millisecond, func(int) string { return "cold1" }),
	},
	{
		name: "swap-models", what: "ask for another cold model each time, and leave after the wait of a change", queues: 4, lasts: swapWindow,
		run: swap(5*time.Second, cold),
	},
	{
		name: "swap-glance", what: "leave after the first record of the cold model", queues: 4, lasts: swapWindow,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 1, 20*time.Millisecond, func(i int) { a.glance(ctx, generate, prompt(attackerMark, cold(i), 64, "")) })
		},
	},
	{
		name: "swap-watch", what: "leave when /api/ps shows that the victims' model was unloaded", queues: 2, lasts: swapWindow,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 1, 20*time.Millisecond, func(int) { a.watchAndLeave(ctx) })
		},
	},
	{
		name: "swap-retry", what: "a client with a short timeout that tries again, which must get its model in the end", queues: 2,
		lasts: swapWindow,
		run:   swap(1500*time.Millisecond, func(int) string { return "cold2" }),
	},
	{
		name: "swap-stay", what: "take one token of a cold model each time", queues: 4, lasts: swapWindow,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 2, 20*time.Millisecond, func(i int) { a.ask(ctx, generate, prompt(attackerMark, cold(i), 1, ""), time.Minute) })
		},
	},
	{
		name: "options", what: "alternate num_ctx, so that the model is loaded again", queues: 3, lasts: swapWindow, real: true,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 2, 20*time.Millisecond, func(i int) {
				a.ask(ctx, generate, prompt(attackerMark, victimModel, 1, fmt.Sprintf(`,"num_ctx":%d`, 1024+512*(i%2))), time.Minute)
			})
		},
	},
	{
		name: "options-leave", what: "the same, leaving before the load ends", queues: 3, lasts: swapWindow,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 1, 20*time.Millisecond, func(i int) {
				a.ask(ctx, generate, prompt(attackerMark, victimModel, 1, fmt.Sprintf(`,"num_ctx":%d`, 8192+1024*(i%2))), 1200*time.Millisecond)
			})
		},
	},
}

// swap asks for a model again and again, and leaves each time after patience.
func swap(patience time.Duration, model func(i int) string) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		a.loops(ctx, 1, 20*time.Millisecond, func(i int) { a.ask(ctx, generate, prompt(attackerMark, model(i), 16, ""), patience) })
	}
}

// watchAndLeave asks for a cold model and leaves at the moment that costs the others most.
func (a *attacker) watchAndLeave(ctx context.Context) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	go func() {
		defer leave()
		for there := true; there && pause(ctx, 20*time.Millisecond); {
			var ps struct{ Models []struct{ Name string } }
			if a.bed.ask("GET", "/api/ps", a.key, "", &ps) != nil {
				return
			}
			there = false
			for _, m := range ps.Models {
				there = there || m.Name == victimModel+":latest"
			}
		}
	}()
	a.ask(ctx, generate, prompt(attackerMark, "cold1", 16, ""), time.Minute)
}
