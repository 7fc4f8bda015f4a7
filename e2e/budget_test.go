package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// allowed is what requests that reached a fake Ollama may have used: their prompts as the gateway estimates them, and the longest
// answers they ask for.
func allowed(t *testing.T, fake *ollamatest.Server) (requests int, tokens int64) {
	t.Helper()
	for _, r := range fake.RequestsTo("POST", "/api/generate") {
		var body struct {
			Options struct {
				Most int64 `json:"num_predict"`
			}
		}
		if err := json.Unmarshal(r.Body, &body); err != nil || body.Options.Most < 1 {
			t.Fatalf("%v in %s", err, r.Body)
		}
		tokens += body.Options.Most + promptEstimate
		requests++
	}
	return requests, tokens
}

const (
	prompt40       = `{"model":"tiny","prompt":"forty characters are about ten tokens, yes","options":{"num_predict":20}}`
	promptEstimate = 11 // (41 characters of prompt + 3) / 4
)

// oneOfFive lets one token of an answer through and no more.
func oneOfFive(*ollamatest.Request) ollamatest.Answer {
	gate := make(chan struct{}, 1)
	gate <- struct{}{}
	return ollamatest.Answer{Tokens: 5, Gate: gate}
}

// streams opens n streams at one time and waits until each has its first record or a refusal. close ends those that run.
func streams(t *testing.T, s *service, key string, n int) (running, refused int, end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	bodies := make([]*http.Response, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/api/generate", strings.NewReader(prompt40))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+key)
			res, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			bodies[i] = res
			if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil && res.StatusCode == http.StatusOK {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, res := range bodies {
		switch {
		case res == nil:
		case res.StatusCode == http.StatusOK:
			running++
		case res.StatusCode == http.StatusTooManyRequests:
			refused++
		default:
			t.Errorf("%s", res.Status)
		}
	}
	return running, refused, func() {
		cancel()
		for _, res := range bodies {
			if res != nil {
				res.Body.Close()
			}
		}
	}
}

// Five times killed with a hundred streams open: all that was ever let through stays within the limit.
func TestARestartLoopGainsNoTokens(t *testing.T) {
	const each, rounds = 100, 5
	const limit = each*(promptEstimate+20)*2 + 40*(promptEstimate+20) // for two rounds and a part of the third
	fake := ollamatest.Start(t)
	fake.Handle("POST", "/api/generate", oneOfFive)
	backend := fake.URL + "?slots=200"
	s := start(t, t.TempDir(), backend, nil)
	key := s.makeKey(t, `,"rate_limit":null,"tokens_per_day":`+strconv.Itoa(limit))
	var log []string
	for range rounds {
		running, refused, end := streams(t, s, key.Secret, each)
		log = append(log, fmt.Sprintf("%d+%d", running, refused))
		if running+refused != each {
			t.Errorf("%d run and %d were refused, of %d", running, refused, each)
		}
		s.kill(t)
		end()
		s = s.again(t, backend)
	}
	requests, tokens := allowed(t, fake)
	t.Logf("running+refused by round: %s; %d requests for at most %d tokens of %d", strings.Join(log, ", "), requests, tokens, limit)
	if tokens > limit || requests < 240 {
		t.Errorf("%d requests may have used %d tokens of %d", requests, tokens, limit)
	}
	if last(log) != "0+100" {
		t.Errorf("the last round: %s", last(log))
	}
	// The rows are on the books, and what they hold is said.
	rows := s.rows(t, key.Preview, requests)
	for _, r := range rows {
		if r.Outcome != "interrupted" || !r.Estimated || r.Prompt != promptEstimate || r.Reserved < promptEstimate+1 || r.Reserved > promptEstimate+20 {
			t.Fatalf("a row: %+v", r)
		}
	}
	if len(rows) != requests {
		t.Errorf("%d rows for %d requests", len(rows), requests)
	}
}

// The same with GPU time, which cannot be reserved in advance: a kill may hide about a second of it.
func TestARestartLoopGainsNoTime(t *testing.T) {
	fake := ollamatest.Start(t)
	fake.Handle("POST", "/api/generate", oneOfFive)
	s := start(t, t.TempDir(), fake.URL, nil)
	key := s.makeKey(t, `,"gpu_seconds_per_day":3`)
	ran := 0
	for range 5 {
		from := time.Now()
		running, _, end := streams(t, s, key.Secret, 1)
		ran += running
		if running == 1 {
			poll(t, "sign of life a second later", func() bool {
				text, _ := os.ReadFile(filepath.Join(s.Data, "journal", "alive"))
				ms, _ := strconv.ParseInt(string(text), 10, 64)
				return ms >= from.Add(time.Second).UnixMilli()
			})
		}
		s.kill(t)
		end()
		s = s.again(t, fake.URL)
	}
	if ran < 2 || ran > 3 {
		t.Errorf("%d streams of a second or more ran on 3 seconds", ran)
	}
}

// A real Ollama obeys what a request was clamped to, and its own count is what the key is charged in the end.
func TestARealOllamaIsClamped(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, `,"tokens_per_hour":40`)
	var total int64
	for range 3 {
		a := call(t, "POST", s.URL+"/api/generate", key.Secret, `{"model":"tiny","prompt":"x","options":{"num_predict":30}}`)
		if a.Status == http.StatusTooManyRequests {
			break
		}
		end := last(lines(t, a.want(t, http.StatusOK).Body))
		if end["done_reason"] != "length" {
			t.Errorf("the end: %v", end)
		}
		total += int64(end["eval_count"].(float64) + end["prompt_eval_count"].(float64))
	}
	// What a template adds to a prompt is known only afterwards: that much more than the limit may be counted, and no more.
	if total < 30 || total > 40+20 {
		t.Errorf("%d tokens on a limit of 40", total)
	}
	a := call(t, "POST", s.URL+"/v1/chat/completions", key.Secret, `{`+ask+`}`).want(t, http.StatusTooManyRequests)
	if !strings.Contains(a.Body, "tokens_per_hour") || a.Header.Get("X-Should-Retry") != "false" || a.Header.Get("Retry-After") == "" {
		t.Errorf("%v %s", a.Header, a.Body)
	}
}
