package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

const oneToken = `{"model":"tiny","prompt":"x","stream":false,"options":{"num_predict":1}}`

func TestRateLimit(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, `,"rate_limit":2`).Secret
	for _, remaining := range []string{"1", "0"} {
		a := call(t, "POST", s.URL+"/api/generate", key, oneToken).want(t, http.StatusOK)
		if a.Header.Get("X-RateLimit-Limit") != "2" || a.Header.Get("X-RateLimit-Remaining") != remaining || a.Header.Get("X-RateLimit-Reset") == "" {
			t.Errorf("header %v, want limit 2 and remaining %s", a.Header, remaining)
		}
	}
	for _, path := range []string{"/api/generate", "/v1/completions"} {
		a := call(t, "POST", s.URL+path, key, oneToken).want(t, http.StatusTooManyRequests)
		for _, name := range []string{"Retry-After", "X-RateLimit-Reset"} {
			if n, err := strconv.Atoi(a.Header.Get(name)); err != nil || n < 1 || n > 3660 {
				t.Errorf("%s: %s %q, want seconds from 1 to 3660", path, name, a.Header.Get(name))
			}
		}
		if a.Header.Get("X-Should-Retry") != "false" || a.Header.Get("X-RateLimit-Remaining") != "0" {
			t.Errorf("%s: header %v", path, a.Header)
		}
		o := a.object(t)
		if path == "/api/generate" {
			if o["detail"] != "Rate limit exceeded" || !strings.HasPrefix(o["error"].(string), "Rate limit exceeded") {
				t.Errorf("body %s", a.Body)
			}
		} else if e, _ := o["error"].(map[string]any); !strings.HasPrefix(e["message"].(string), "Rate limit exceeded") {
			t.Errorf("body %s", a.Body)
		}
	}
	// A refused request has no row, and routes without a limit still work.
	if st := s.stats(t, key, 2); st.Total != 2 {
		t.Errorf("%d rows for 2 requests", st.Total)
	}
	call(t, "GET", s.URL+"/api/models", key, "").want(t, http.StatusOK)
}

// Of 500 concurrent requests with a limit of 100, exactly 100 pass, also after the service was killed and restarted.
func TestTheLimitIsExactAndOutlivesAKill(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, `,"rate_limit":100`).Secret
	passed, refused := flood(t, s, key, 500)
	if passed != 100 || refused != 400 {
		t.Fatalf("%d passed and %d were refused", passed, refused)
	}
	if st := s.stats(t, key, 100); st.Total != 100 {
		t.Errorf("%d rows", st.Total)
	}
	s.kill(t)
	s = s.again(t, ollamaURL)
	if passed, refused := flood(t, s, key, 20); passed != 0 || refused != 20 {
		t.Errorf("after a kill %d passed and %d were refused", passed, refused)
	}
	s.stop(t)
	s = s.again(t, ollamaURL)
	if passed, _ := flood(t, s, key, 20); passed != 0 {
		t.Errorf("after a restart %d passed", passed)
	}
	if st := s.stats(t, key, 100); st.Total != 100 {
		t.Errorf("%d rows after two restarts", st.Total)
	}
}

// flood sends n concurrent requests and counts the answers.
func flood(t *testing.T, s *service, key string, n int) (passed, refused int) {
	t.Helper()
	gate := make(chan struct{})
	statuses := make([]int, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-gate
			a, err := tryCall(t.Context(), "POST", s.URL+"/api/generate", key, oneToken)
			if err != nil {
				t.Error(err)
			}
			statuses[i] = a.Status
		})
	}
	close(gate)
	all.Wait()
	for _, status := range statuses {
		switch status {
		case http.StatusOK:
			passed++
		case http.StatusTooManyRequests:
			refused++
		default:
			t.Errorf("a request was answered with %d", status)
		}
	}
	return passed, refused
}

func TestConcurrencyLimit(t *testing.T) {
	fake := ollamatest.Start(t)
	gate := make(chan struct{})
	fake.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 2, Gate: gate})
	s := start(t, t.TempDir(), fake.URL, nil)
	key := s.makeKey(t, `,"max_concurrent":1`).Secret
	first := make(chan answer, 1)
	go func() {
		a, _ := tryCall(t.Context(), "POST", s.URL+"/api/chat", key, `{`+ask+`}`)
		first <- a
	}()
	fake.WaitRequestTo(1, "POST", "/api/chat")
	a := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusTooManyRequests)
	if a.Header.Get("Retry-After") == "" {
		t.Errorf("no Retry-After in %v", a.Header)
	}
	close(gate)
	(<-first).want(t, http.StatusOK)
	call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusOK)
}
