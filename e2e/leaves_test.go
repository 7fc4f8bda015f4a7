package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Ollama 0.6.5 can lose a slot of its model for good when a streaming client leaves (ollama/ollama#17131). Behind the gateway, all slots
// still work after many clients have left, wherever in their answers.
func TestLeavingCostsNoSlot(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	const slots, workers, leaves = 4, 6, 120
	url, stop, err := startOllama(t.TempDir(), nil)
	t.Cleanup(stop)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, t.TempDir(), fmt.Sprintf("%s?slots=%d", url, slots), nil)
	key := s.makeKey(t, `,"rate_limit":null`).Secret
	var next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := next.Add(1); i <= leaves; i = next.Add(1) {
				s.readRecords(t.Context(), key, int(i), 60, int(i%7), nil)
			}
		})
	}
	all.Wait()

	// Long answers begin together: with a slot less, one of them begins when another has ended.
	var mu sync.Mutex
	begun, endedBefore := 0, 0
	for i := range slots {
		all.Go(func() {
			n := s.readRecords(t.Context(), key, leaves+i+1, 200, -1, func() {
				mu.Lock()
				defer mu.Unlock()
				begun++
			})
			mu.Lock()
			defer mu.Unlock()
			if n < 2 {
				t.Errorf("got an answer of %d records, want a long one", n)
			}
			if begun < slots {
				endedBefore++
			}
		})
	}
	all.Wait()
	if endedBefore > 0 {
		t.Errorf("%d answers ended before all %d had begun: a slot was lost, want all to run together", endedBefore, slots)
	}
}

// readRecords asks for an answer of a number of tokens, reads some records of it, and leaves. It leaves before the header if records is 0,
// and reads everything if it is negative. It returns how many records it has read; begun is called after the first.
func (s *service) readRecords(ctx context.Context, key string, seed, tokens, records int, begun func()) (n int) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	body := fmt.Sprintf(`{"model":"tiny","prompt":"%d %s","options":{"num_predict":%d,"seed":%d}}`, seed, strings.Repeat("hello there ", 20), tokens, seed)
	r, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/api/generate", strings.NewReader(body))
	if err != nil {
		return 0
	}
	r.Header.Set("Authorization", "Bearer "+key)
	if records == 0 { // leave as soon as the request is written
		r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { leave() }}))
	}
	res, err := client.Do(r)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	for in := bufio.NewScanner(res.Body); n != records && in.Scan(); {
		if n++; n == 1 && begun != nil {
			begun()
		}
	}
	return n
}
