package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var fleetRequests = flag.Int("fleet-requests", 1000, "how many requests TestFleetKills sends while backends die")

// fakeOllama is a fake backend that can be killed and started again on its address. It records the requests that it has answered.
type fakeOllama struct {
	t       *testing.T
	address string
	server  *http.Server
	ended   chan struct{}

	mu       sync.Mutex
	begun    map[string]int // first records sent, by the request's prompt
	complete map[string]int // last records sent
}

func startFakeOllama(t *testing.T) *fakeOllama {
	m := &fakeOllama{t: t, address: "127.0.0.1:0", begun: make(map[string]int), complete: make(map[string]int)}
	m.start()
	t.Cleanup(func() { m.kill() })
	return m
}

func (m *fakeOllama) start() {
	l, err := net.Listen("tcp", m.address)
	if err != nil {
		m.t.Error(err)
		return
	}
	m.address = l.Addr().String()
	m.server = &http.Server{Handler: m}
	m.ended = make(chan struct{})
	go func() {
		defer close(m.ended)
		_ = m.server.Serve(l)
	}()
}

// kill ends the listener and every connection at once.
func (m *fakeOllama) kill() {
	m.server.Close()
	<-m.ended
}

func (m *fakeOllama) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/api/version":
		io.WriteString(w, `{"version":"0.6.5"}`)
	case "/api/tags":
		io.WriteString(w, `{"models":[{"name":"tiny:latest","model":"tiny:latest","digest":"d"}]}`)
	case "/api/ps":
		io.WriteString(w, `{"models":[{"name":"tiny:latest","model":"tiny:latest","digest":"d","size_vram":1}]}`)
	case "/api/generate":
		m.generate(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (m *fakeOllama) generate(w http.ResponseWriter, r *http.Request) {
	var ask struct{ Prompt string }
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	pause := func() bool {
		select {
		case <-r.Context().Done():
			return false
		case <-time.After(2 * time.Millisecond):
			return true
		}
	}
	for i := range 5 {
		if !pause() {
			return
		}
		if _, err := io.WriteString(w, `{"model":"tiny:latest","created_at":"2026-01-01T00:00:00Z","response":"a","done":false}`+"\n"); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		if i == 0 {
			m.note(m.begun, ask.Prompt)
		}
	}
	if _, err := io.WriteString(w, `{"model":"tiny:latest","created_at":"2026-01-01T00:00:00Z","response":"","done":true,"done_reason":"stop","total_duration":9,"load_duration":1,"prompt_eval_count":3,"prompt_eval_duration":1,"eval_count":5,"eval_duration":7}`+"\n"); err == nil {
		m.note(m.complete, ask.Prompt)
	}
}

func (m *fakeOllama) note(what map[string]int, prompt string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	what[prompt]++
}

// TestFleetKills has three backends die and come back at random under load. A request whose answer had not begun is served by
// another one, and no answer that began is begun again.
func TestFleetKills(t *testing.T) {
	random := chaosRandom(t)
	fakes := []*fakeOllama{startFakeOllama(t), startFakeOllama(t), startFakeOllama(t)}
	var urls []string
	for i, m := range fakes {
		urls = append(urls, fmt.Sprintf("http://%s?slots=4&name=gpu%d", m.address, i))
	}
	s, address := startBare(t, t.TempDir(), strings.Join(urls, ","), nil, "DEFAULT_ADMIN_RATE_LIMIT=1000000")
	url := "http://" + address

	ctx, cancel := context.WithCancel(t.Context())
	var killing sync.WaitGroup
	kills := 0
	dice := rand.New(rand.NewPCG(random.Uint64(), 1))
	killing.Go(func() {
		for ctx.Err() == nil {
			m := fakes[dice.IntN(len(fakes))]
			m.kill()
			kills++
			wait(ctx, time.Duration(20+dice.IntN(300))*time.Millisecond)
			m.start()
			wait(ctx, time.Duration(100+dice.IntN(500))*time.Millisecond)
		}
	})

	var next, whole, cut atomic.Int64
	var load sync.WaitGroup
	outcomes := make([]string, *fleetRequests)
	for range 16 {
		load.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(outcomes) {
					return
				}
				body, began, err := generate(t.Context(), url, s.Admin, fmt.Sprintf("request %d", i))
				switch {
				case err == nil && strings.Contains(body, `"done":true`):
					whole.Add(1)
					outcomes[i] = "whole"
				case began:
					cut.Add(1)
					outcomes[i] = "cut"
				default:
					t.Errorf("request %d had not begun and failed: %v %s", i, err, body)
				}
			}
		})
	}
	load.Wait()
	cancel()
	killing.Wait()

	for i, outcome := range outcomes {
		prompt, begun, complete := fmt.Sprintf("request %d", i), 0, 0
		for _, m := range fakes {
			m.mu.Lock()
			begun += m.begun[prompt]
			complete += m.complete[prompt]
			m.mu.Unlock()
		}
		if complete > 1 || outcome == "whole" && complete != 1 || outcome == "cut" && begun > 1 {
			t.Errorf("request %d (%s) was begun %d times and completed %d times", i, outcome, begun, complete)
		}
	}
	t.Logf("%d requests, %d kills: %d whole, %d cut off in the middle", len(outcomes), kills, whole.Load(), cut.Load())
	if kills == 0 || whole.Load() == 0 {
		t.Error("nothing was tried")
	}
	s.stop(t)
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// generate asks for a stream and reports whether an answer began.
func generate(ctx context.Context, url, key, prompt string) (body string, began bool, err error) {
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/api/generate", strings.NewReader(fmt.Sprintf(`{"model":"tiny","prompt":%q}`, prompt)))
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := client.Do(req)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.StatusCode == http.StatusOK, err
}

// TestTwoOllamas shares two real servers, with the tiny model under two names, between a key that wants everything and one that asks now and then.
func TestTwoOllamas(t *testing.T) {
	second, stop, err := startOllama(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	// With a thread for each core two servers spin against each other; one is enough for so small a model.
	for _, server := range []string{ollamaURL, second} {
		for _, name := range []string{"left", "right"} {
			call(t, "POST", server+"/api/create", "", fmt.Sprintf(`{"model":%q,"from":"tiny","parameters":{"num_thread":1,"num_predict":8},"stream":false}`, name)).want(t, http.StatusOK)
		}
	}
	defer func() {
		for _, name := range []string{"left", "right"} {
			call(t, "DELETE", ollamaURL+"/api/delete", "", fmt.Sprintf(`{"model":%q}`, name)).want(t, http.StatusOK)
		}
	}()
	s, address := startBare(t, t.TempDir(), ollamaURL+"?slots=1&name=one,"+second+"?slots=1&name=two", nil, "DEFAULT_ADMIN_RATE_LIMIT=1000000", "MAX_QUEUE=1000", "MAX_QUEUE_PER_KEY=500")
	url := "http://" + address
	heavy, light := chaosKey(t, url, s.Admin), chaosKey(t, url, s.Admin)

	body := func(model string) string {
		return fmt.Sprintf(`{"model":%q,"prompt":"once upon a time","stream":false}`, model)
	}
	var all sync.WaitGroup
	var served atomic.Int64
	backends := make(map[string]int)
	var mu sync.Mutex
	const burst = 60
	waiting := make(chan struct{}, burst)
	for i := range burst {
		model := []string{"left", "right"}[i%2]
		all.Go(func() {
			waiting <- struct{}{}
			res := call(t, "POST", url+"/api/generate", heavy, body(model)).want(t, http.StatusOK)
			served.Add(1)
			mu.Lock()
			backends[res.Header.Get("X-Backend")]++
			mu.Unlock()
		})
	}
	for range burst {
		<-waiting
	}
	// What the light key asks for is answered while the heavy one's are still waiting, whatever has come before.
	for served.Load() < 4 {
		wait(t.Context(), time.Millisecond)
	}
	for _, model := range []string{"left", "right", "left"} {
		before := served.Load()
		res := call(t, "POST", url+"/api/generate", light, body(model)).want(t, http.StatusOK)
		if passed := served.Load() - before; passed > 20 {
			t.Errorf("%d requests of the heavy key were served while one of the light key's for %s waited", passed, model)
		}
		if res.Header.Get("X-Queue-Wait-Ms") == "" {
			t.Error("the answer does not say how long it waited")
		}
	}
	if n := served.Load(); n == burst {
		t.Error("the heavy key had nothing waiting any more: nothing was tried")
	}
	all.Wait()
	if backends["one"] == 0 || backends["two"] == 0 || backends["one"]+backends["two"] != burst {
		t.Errorf("served by %v", backends)
	}
	s.stop(t)
}
