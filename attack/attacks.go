//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// attack is one way to harm other keys, or to get more than the key pays for.
type attack struct {
	name, what string
	settings   []string      // of the gateway
	tls        bool          // the gateway and all its clients use HTTPS
	found      bool          // the gateway finds the number of slots
	fresh      bool          // the gateway has not seen a model being replaced yet
	key        string        // more members of the attackers' keys
	weight     float64       // of each attacker; 0 means 1
	queues     int           // the number of models, or of sets of load options, in use
	padding    int           // bytes of white space added to a victim's body
	memory     int64         // the gateway's peak memory may have this many bytes; 0: any
	lasts      time.Duration // the duration of the measured window
	heavy      bool          // it loads the processor: nothing else runs at the same time
	real       bool          // also with a real Ollama
	prepare    func()        // makes what the attack sends, which takes longer than a short window
	run        func(ctx context.Context, a *attacker)
}

var attacks = slices.Concat(swaps, queues, bodies, tokens, floods)

// choose returns the attacks whose name contains one of the parts.
func choose(only string) ([]attack, error) {
	if only == "" {
		return attacks, nil
	}
	var chosen []attack
	for part := range strings.SplitSeq(only, ",") {
		n := len(chosen)
		for _, a := range attacks {
			if strings.Contains(a.name, part) && !slices.ContainsFunc(chosen, func(b attack) bool { return b.name == a.name }) {
				chosen = append(chosen, a)
			}
		}
		if len(chosen) == n {
			return nil, fmt.Errorf("-only: no attack has %q in its name; -list prints the names", part)
		}
	}
	return chosen, nil
}

// attacker is one key of the red team. It has its own address, so that bounds by address do not protect the victims.
type attacker struct {
	*bed
	key            string
	number         int
	dialer         net.Dialer
	client         *http.Client
	sent, answered atomic.Int64
}

func newAttacker(b *bed, key string, number int) *attacker {
	a := &attacker{bed: b, key: key, number: number}
	a.dialer = net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+number))}, Timeout: 5 * time.Second}
	a.client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256, DialContext: a.dialer.DialContext, TLSClientConfig: b.trust, ForceAttemptHTTP2: b.trust != nil,
	}}
	return a
}

func (a *attacker) close() { a.client.CloseIdleConnections() }

// loops runs workers that each call f, with an increasing number, until ctx ends. Each worker pauses between two calls.
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

// ask sends a body and cancels the request after patience.
func (a *attacker) ask(ctx context.Context, path, body string, patience time.Duration) {
	ctx, leave := context.WithTimeout(ctx, patience)
	defer leave()
	a.sent.Add(1)
	status, _, err := a.post(ctx, a.client, path, a.key, strings.NewReader(body), nil)
	if err == nil && status == http.StatusOK {
		a.answered.Add(1)
	}
}

// glance sends a body and leaves after the first bytes of the answer.
func (a *attacker) glance(ctx context.Context, path, body string) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	r, err := http.NewRequestWithContext(ctx, "POST", a.url+path, strings.NewReader(body))
	if err != nil {
		return
	}
	r.Header.Set("Authorization", "Bearer "+a.key)
	a.sent.Add(1)
	resp, err := a.client.Do(r)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err == nil && resp.StatusCode == http.StatusOK {
		a.answered.Add(1)
	}
}

// prompt returns a body for /api/generate that is as long as a victim's. It has a mark by which the scripted Ollama recognizes the
// party. options are more options, after a comma.
func prompt(mark, model string, tokens int, options string) string {
	return fmt.Sprintf(`{"model":%q,"prompt":"the %s asks %s","options":{"num_predict":%d%s}}`,
		model, mark, strings.Repeat("hello there ", 20), tokens, options)
}

const generate = "/api/generate"

// cold returns the name of a model that no victim uses.
func cold(i int) string { return fmt.Sprint("cold", 1+i%3) }
