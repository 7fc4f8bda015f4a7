package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// budgets is a key's limits of tokens and time as /api/stats shows them, by field.
func (b *bed) budgets(key string) map[string]map[string]any {
	b.t.Helper()
	all := map[string]map[string]any{}
	for _, item := range b.stats(key)["limits"].(map[string]any)["budgets"].([]any) {
		one := item.(map[string]any)
		all[one["limit"].(string)] = one
	}
	return all
}

// row is a key's newest booked request.
func (b *bed) row(preview string) map[string]any {
	b.t.Helper()
	list := b.do("GET", "/api/admin/requests?limit=1&key="+preview, adminSecret, "").json(b.t)["requests"].([]any)
	if len(list) == 0 {
		b.t.Fatal("no row")
	}
	return list[0].(map[string]any)
}

// metered are the routes that generate, with a request for a stream, what the longest answer is called, and what the end of one
// that is cut says.
var metered = []struct{ path, body, most, length string }{
	{"/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"four"}]}`, `"num_predict":`, `"done":true,"done_reason":"length"`},
	{"/api/generate", `{"model":"tiny","prompt":"four"}`, `"num_predict":`, `"done":true,"done_reason":"length"`},
	{"/v1/chat/completions", `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"four"}]}`, `"max_tokens":`, `"finish_reason":"length"`},
	{"/v1/completions", `{"model":"tiny","stream":true,"prompt":"four"}`, `"max_tokens":`, `"finish_reason":"length"`},
	{"/v1/responses", `{"model":"tiny","stream":true,"input":"four"}`, `"max_output_tokens":`, `"reason":"max_output_tokens"`},
	{"/v1/messages", `{"model":"tiny","stream":true,"max_tokens":99,"messages":[{"role":"user","content":"four"}]}`, `"max_tokens":`, `"stop_reason":"max_tokens"`},
}

// A request is clamped to what its key has left, and refused when that is nothing.
func TestTokensAreClampedAndThenRefused(t *testing.T) {
	for _, c := range metered {
		b := start(t, setup{})
		key, preview := b.key(`{"name":"metered","role":"user","tokens_per_hour":50,"tokens_per_day":1000}`)
		b.ollama.Script("POST", c.path, ollamatest.Answer{Tokens: 20, PromptTokens: 4}, ollamatest.Answer{Tokens: 20, PromptTokens: 6})
		estimate := 0
		for i, left := range []int{50, 26} {
			r := b.do("POST", c.path, key, c.body)
			upstream := string(b.ollama.RequestsTo("POST", c.path)[i].Body)
			if estimate == 0 { // the characters of a prompt, and what there is around it, divided by four
				_, after, _ := strings.Cut(upstream, c.most)
				if _, err := fmt.Sscan(strings.TrimRight(after, "}"), &estimate); err != nil {
					fmt.Sscanf(after, "%d", &estimate)
				}
				estimate = 50 - estimate
			}
			if want := fmt.Sprintf("%s%d", c.most, left-estimate); r.status != 200 || estimate < 1 || estimate > 9 || !strings.Contains(upstream, want) ||
				!strings.Contains(`"`+strings.ReplaceAll(r.header.Get("X-Policy"), "=", `":`), want) {
				t.Fatalf("%s: %d, X-Policy %q, upstream got %s, want %s", c.path, r.status, r.header.Get("X-Policy"), upstream, want)
			}
		}
		// 24 and 26 tokens were counted: nothing is left.
		hour, day := b.budgets(key)["tokens_per_hour"], b.budgets(key)["tokens_per_day"]
		compare(t, fmt.Sprintf("%s: %v", c.path, b.budgets(key)),
			fact{`hour["used"]`, hour["used"], 50.0},
			fact{`hour["remaining"]`, hour["remaining"], 0.0},
			fact{`hour["held"]`, hour["held"], 0.0},
			fact{`hour["reset_seconds"].(float64) < 3540`, hour["reset_seconds"].(float64) < 3540, false},
			fact{`day["used"]`, day["used"], 50.0},
			fact{`day["remaining"]`, day["remaining"], 950.0},
			fact{`day["reset_seconds"]`, day["reset_seconds"], 0.0},
		)
		seen := len(b.ollama.Requests())
		r := b.do("POST", c.path, key, c.body)
		if r.status != 429 || !strings.Contains(r.body, "50 of the 50 tokens that its tokens_per_hour allows in any 60 minutes") || r.header.Get("X-Should-Retry") != "false" ||
			r.header.Get("Retry-After") == "" || r.header.Get("X-Ratelimit-Remaining") != "98" || len(b.ollama.Requests()) != seen {
			t.Errorf("%s: %d %v %s", c.path, r.status, r.header, r.body)
		}
		// Embeddings and lists: the first needs tokens too, the second does not.
		if r := b.do("POST", "/api/embed", key, `{"model":"tiny","input":"x"}`); r.status != 429 {
			t.Errorf("an embedding: %d, want 429", r.status)
		}
		if r := b.do("GET", "/api/tags", key, ""); r.status != 200 {
			t.Errorf("a list: %d, want 200", r.status)
		}
		if row := b.row(preview); row["outcome"] != "ok" || row["completion_tokens"] != 20.0 {
			t.Errorf("%s: %v, want %q, %v", c.path, row, "ok", 20.0)
		}
		b.stop()
	}
}

// Where an answer gets longer than what was held for it, and nothing else is left, the stream ends there as one that reached its
// length: upstream is told to stop, and the row says what has passed.
func TestAStreamEndsWhereItsKeyHasNothingLeft(t *testing.T) {
	for _, c := range metered {
		for _, field := range []string{"tokens_per_hour", "tokens_per_day"} {
			b := start(t, setup{})
			key, preview := b.key(`{"name":"metered","role":"user","` + field + `":12}`)
			b.ollama.Script("POST", c.path, ollamatest.Answer{Tokens: 500, Fault: ollamatest.Hang, FaultAt: 100_000})
			r := b.do("POST", c.path, key, c.body)
			b.ollama.WaitRequestTo(1, "POST", c.path).WaitClosed()
			if r.status != 200 || r.err != nil || strings.Count(r.body, c.length) != 1 || strings.Contains(r.body, `"error":{`) {
				t.Fatalf("%s: %d %v\n%s", c.path, r.status, r.err, r.body)
			}
			row := b.row(preview)
			passed := int(row["completion_tokens"].(float64))
			if row["outcome"] != "cut_by_limit" || row["error_code"] != "token_limit" || row["estimated"] != true || row["status"] != 200.0 ||
				passed < 5 || row["prompt_tokens"].(float64)+float64(passed) != 12 || strings.Count(r.body, ollamatest.Word(passed-1)) == 0 {
				t.Errorf("%s: %v\n%s", c.path, row, r.body)
			}
			if got := b.budgets(key)[field]; got["used"] != 12.0 || got["held"] != 0.0 {
				t.Errorf("%s: %v, want %v, %v", c.path, got, 12.0, 0.0)
			}
			if usage := b.do("GET", "/api/stats", key, ""); !strings.Contains(usage.body, `"cut_by_limit":1`) {
				t.Errorf("statistics: %s, want %s in it", usage.body, `"cut_by_limit":1`)
			}
			b.stop()
		}
	}
}

// GPU time cannot be held before it is used: who has some left begins, and the stream ends when it is used up.
func TestAStreamEndsWhereTheGPUTimeDoes(t *testing.T) {
	var limits *limit.Memory
	for _, c := range metered {
		b := start(t, setup{change: func(o *server.Options) { limits = o.Limits }})
		key, preview := b.key(`{"name":"metered","role":"user","gpu_seconds_per_day":60}`)
		limits.RestoreUsed(preview, time.Now(), limit.Used{GPU: time.Minute - 1})
		b.ollama.Script("POST", c.path, ollamatest.Answer{Tokens: 20})
		r := b.do("POST", c.path, key, c.body)
		if r.status != 200 || r.err != nil || strings.Count(r.body, c.length) != 1 {
			t.Fatalf("%s: %d %v\n%s", c.path, r.status, r.err, r.body)
		}
		if row := b.row(preview); row["outcome"] != "cut_by_limit" || row["error_code"] != "gpu_limit" || row["completion_tokens"] != 0.0 || row["gpu_ms"].(float64) <= 0 {
			t.Errorf("%s: %v, want %q, %q, %v, more than 0", c.path, row, "cut_by_limit", "gpu_limit", 0.0)
		}
		if r := b.do("POST", c.path, key, c.body); r.status != 429 || !strings.Contains(r.body, "60 of the 60 seconds of the GPU that its gpu_seconds_per_day allows") {
			t.Errorf("%s: %d %s, want 429, %q in it", c.path, r.status, r.body, "60 of the 60 seconds of the GPU that its gpu_seconds_per_day allows")
		}
		b.stop()
	}
}

// What one stream holds, another cannot have; what it does not use is free again, also when its client leaves.
func TestStreamsOfOneKeyShareItsTokens(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"metered","role":"user","tokens_per_day":100}`)
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 50, Gate: gate}, ollamatest.Answer{Tokens: 3, PromptTokens: 2})
	leave := make(chan func(), 1)
	go func() {
		leave <- b.leave("/api/chat", key, `{"model":"tiny","messages":[{"role":"user","content":"four"}],"options":{"num_predict":90}}`, true)
	}()
	gate <- struct{}{}
	gone := <-leave
	held := b.budgets(key)["tokens_per_day"]["held"].(float64)
	if held < 91 || held > 95 {
		t.Fatalf("%v tokens are held for 90 and the prompt, want at least 91, at most 95", held)
	}
	if r := b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[{"role":"user","content":"`+strings.Repeat("long ", 20)+`"}]}`); r.status != 429 || r.header.Get("Retry-After") != "1" ||
		!strings.Contains(r.body, "running requests hold the rest") || r.header.Get("X-Should-Retry") != "" {
		t.Errorf("more than what is not held: %d %v %s", r.status, r.header, r.body)
	}
	if r := b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[]}`); r.status != 200 || !strings.HasPrefix(r.header.Get("X-Policy"), "num_predict=") {
		t.Errorf("what is not held: %d %v %s, want 200, %q at its start", r.status, r.header, r.body, "num_predict=")
	}
	gone()
	b.until("what was held is free", func() bool { return b.budgets(key)["tokens_per_day"]["held"] == 0.0 })
	if used := b.budgets(key)["tokens_per_day"]["used"].(float64); used < 6 || used > 32 {
		t.Errorf("%v used by two short answers, want at least 6, at most 32", used)
	}
	if row := b.row(preview); row["outcome"] != "client_gone" && row["outcome"] != "ok" {
		t.Errorf("%v", row)
	}
}

// The longest answer is the key's, whoever has it and whatever it asks for; a limit of 0 blocks what generates.
func TestLongestAnswerAndBlockedKeys(t *testing.T) {
	b := start(t, setup{})
	for _, role := range []string{"user", "admin"} {
		key, _ := b.key(`{"name":"short","role":"` + role + `","max_tokens_per_request":7}`)
		for _, c := range metered {
			b.ollama.Script("POST", c.path, ollamatest.Answer{Tokens: 1})
			b.ollama.Forget()
			r := b.do("POST", c.path, key, c.body)
			if body := string(b.ollama.RequestsTo("POST", c.path)[0].Body); r.status != 200 || !strings.Contains(body, c.most+"7") || !strings.HasSuffix(r.header.Get("X-Policy"), "=7") {
				t.Errorf("%s of an %s: %d, X-Policy %q, upstream got %s", c.path, role, r.status, r.header.Get("X-Policy"), body)
			}
		}
	}
	for _, field := range []string{"tokens_per_hour", "tokens_per_day", "gpu_seconds_per_day"} {
		key, _ := b.key(`{"name":"blocked","role":"user","` + field + `":0}`)
		if r := b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[]}`); r.status != 403 || !strings.Contains(r.body, "its "+field+" is 0") {
			t.Errorf("%s of 0: %d %s", field, r.status, r.body)
		}
	}
	key, _ := b.key(`{"name":"small","role":"user","tokens_per_hour":10}`)
	r := b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[{"role":"user","content":"`+strings.Repeat("long ", 200)+`"}]}`)
	if r.status != 429 || !strings.Contains(r.body, "shorten the prompt") || r.header.Get("X-Should-Retry") != "false" {
		t.Errorf("a prompt above the limit: %d %s, want 429, %q in it, %q", r.status, r.body, "shorten the prompt", "false")
	}
	if got := b.do("GET", "/api/stats", key, "").json(t)["limits"].(map[string]any); got["remaining"] != got["rate_limit"] {
		t.Errorf("a refusal cost a request: %v, want %v", got, got["rate_limit"])
	}
}
