//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// attack is one way to hurt others, or to get more than one pays for.
type attack struct {
	name, what string
	settings   []string                             // of the gateway
	key        string                               // further members of the attackers' keys
	weight     float64                              // of each attacker; 0 is 1
	lanes      int                                  // models, or load options, that are wanted
	memory     int64                                // that the gateway may have at its peak; 0 does not matter
	lasts      time.Duration                        // the window that is measured
	real       bool                                 // also on a real Ollama
	run        func(ctx context.Context, a *attacker) // until ctx ends
}

var attacks = slices.Concat(swaps)

// choose is the attacks whose name has one of the parts.
func choose(only string) ([]attack, error) {
	if only == "" {
		return attacks, nil
	}
	var chosen []attack
	for _, part := range strings.Split(only, ",") {
		n := len(chosen)
		for _, a := range attacks {
			if strings.Contains(a.name, part) && !slices.ContainsFunc(chosen, func(b attack) bool { return b.name == a.name }) {
				chosen = append(chosen, a)
			}
		}
		if len(chosen) == n {
			return nil, fmt.Errorf("-only: no attack is called %q; -list prints them", part)
		}
	}
	return chosen, nil
}

// attacker is one key of the red team.
type attacker struct {
	*bed
	key            string
	number         int
	client         *http.Client
	sent, answered atomic.Int64
}

func newAttacker(b *bed, key string, number int) *attacker {
	return &attacker{bed: b, key: key, number: number, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}}
}

func (a *attacker) close() { a.client.CloseIdleConnections() }

// loops runs workers that each call f, with a number that grows, until ctx ends; pause is between two calls of one worker.
func (a *attacker) loops(ctx context.Context, workers int, between time.Duration, f func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				f(int(next.Add(1)))
				pause(ctx, between)
			}
		})
	}
	all.Wait()
}

// ask sends a body and gives up after patience. It reports whether there was an answer.
func (a *attacker) ask(ctx context.Context, path, body string, patience time.Duration) bool {
	ctx, leave := context.WithTimeout(ctx, patience)
	defer leave()
	a.sent.Add(1)
	status, _, err := a.post(ctx, a.client, path, a.key, body)
	if err != nil || status != http.StatusOK {
		return false
	}
	a.answered.Add(1)
	return true
}

// prompt is a body for /api/generate that the scripted Ollama knows as an attacker's.
func prompt(model string, tokens int, options string) string {
	return fmt.Sprintf(`{"model":%q,"prompt":"an %s asks","options":{"num_predict":%d%s}}`, model, attackerMark, tokens, options)
}

// cold is a model that no victim uses.
func cold(i int) string { return fmt.Sprint("cold", 1+i%3) }

var swaps = []attack{
	{
		name: "swap-leave", what: "ask for a cold model, and leave before it is loaded", lanes: 2, lasts: 12 * time.Second, real: true,
		run: func(ctx context.Context, a *attacker) {
			a.loops(ctx, 1, 20*time.Millisecond, func(int) { a.ask(ctx, "/api/generate", prompt("cold1", 16, ""), 1200*time.Millisecond) })
		},
	},
}
