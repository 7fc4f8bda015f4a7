package server_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// Each dialect has its own names for limits and its own form of times.
func TestLimitsInEachDialect(t *testing.T) {
	b := start(t, setup{})
	requests, _ := b.key(`{"name":"requests","role":"user","rate_limit":10}`)
	tokens, _ := b.key(`{"name":"tokens","role":"user","rate_limit":null,"tokens_per_hour":1000,"tokens_per_day":200}`)
	spent, _ := b.key(`{"name":"spent","role":"user","rate_limit":1,"tokens_per_hour":30}`)
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 20, PromptTokens: 10})
	b.do("POST", "/api/chat", spent, `{"model":"tiny","messages":[],"options":{"num_predict":20}}`)
	for _, f := range flows()[1:] {
		b.ollama.Script("POST", f.path, ollamatest.Answer{Tokens: 2})
		asked := strings.Replace(f.request, "%q", `"x"`, 1)
		about := func(key string) map[string]string {
			found := map[string]string{}
			for name, values := range b.do("POST", f.path, key, asked).header {
				name = strings.ToLower(name)
				openAI, ok := strings.CutPrefix(name, "x-ratelimit-")
				if what, kind, two := strings.Cut(openAI, "-"); ok && two {
					found[kind+" "+what] = values[0]
				}
				if rest, ok := strings.CutPrefix(name, "anthropic-ratelimit-"); ok {
					kind, what, _ := strings.Cut(rest, "-")
					found[kind+" "+what] = values[0]
				}
			}
			return found
		}
		wait := func(text string) time.Duration {
			if f.name == "messages" {
				at, err := time.Parse(time.RFC3339, text)
				if err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
				return time.Until(at)
			}
			d, err := time.ParseDuration(text)
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
			}
			return d
		}
		if got := about(requests); len(got) != 3 || got["requests limit"] != "10" || got["requests remaining"] == "" || wait(got["requests reset"]) > time.Second {
			t.Errorf("%s: a key with a limit of requests: %v, want 3 of them, %q, a text, at most %v", f.name, got, "10", time.Second)
		}
		got := about(tokens)
		if left, err := strconv.Atoi(got["tokens remaining"]); len(got) != 3 || got["tokens limit"] != "200" || err != nil || left < 1 || left > 200 || wait(got["tokens reset"]) > time.Second {
			t.Errorf("%s: a key with limits of tokens: %v", f.name, got)
		}
		got = about(spent)
		for _, kind := range []string{"requests", "tokens"} {
			if d := wait(got[kind+" reset"]); got[kind+" remaining"] != "0" || d < 58*time.Minute || d > 62*time.Minute {
				t.Errorf("%s: a key that is spent: %v, %s in %v, want %q, at least %v, at most %v", f.name, got, kind, d, "0", 58*time.Minute, 62*time.Minute)
			}
		}
	}
	for name := range b.do("POST", "/api/chat", spent, `{"model":"tiny"}`).header {
		if strings.HasPrefix(name, "Anthropic-") || strings.Count(name, "-") > 2 && strings.HasPrefix(name, "X-Ratelimit-") {
			t.Errorf("a native answer has %s", name)
		}
	}
}

// Codex shows a limit and its end if the answer has this type and this time. If a limit ends in a moment, Codex should wait for it.
func TestUsageLimitForCodex(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Throttle = auth.NewThrottle(10, time.Now) }})
	b.ollama.Script("POST", "/v1/responses", ollamatest.Answer{Tokens: 20, PromptTokens: 10})
	for fields, within := range map[string]time.Duration{
		`"rate_limit":1`: 62 * time.Minute, `"rate_limit":9,"tokens_per_hour":30`: 62 * time.Minute, `"rate_limit":9,"tokens_per_day":30`: 25 * time.Hour,
	} {
		key, _ := b.key(`{"name":"codex","role":"user",` + fields + `}`)
		const ask = `{"model":"tiny","input":"x","max_output_tokens":20,"stream":true}`
		b.do("POST", "/v1/responses", key, ask)
		r := b.do("POST", "/v1/responses", key, ask)
		failure, _ := r.json(t)["error"].(map[string]any)
		at, _ := failure["resets_at"].(float64)
		seconds, _ := strconv.Atoi(r.header.Get("Retry-After"))
		if wait := time.Until(time.Unix(int64(at), 0)); r.status != 429 || failure["type"] != "usage_limit_reached" || failure["message"] == "" || r.header.Get("X-Should-Retry") != "false" ||
			wait < 58*time.Minute || wait > within || (wait-time.Duration(seconds)*time.Second).Abs() > 3*time.Second {
			t.Errorf("%s: %d, in %v, Retry-After %d: %s", fields, r.status, time.Until(time.Unix(int64(at), 0)), seconds, r.body)
		}
		if r := b.do("POST", "/v1/chat/completions", key, `{"model":"tiny","messages":[],"max_tokens":20}`); r.status != 429 || !strings.Contains(r.body, `"type":"rate_limit_error"`) || strings.Contains(r.body, "resets_at") {
			t.Errorf("%s in chat: %d %s, want 429, %s in it, no %q", fields, r.status, r.body, `"type":"rate_limit_error"`, "resets_at")
		}
	}
	wrong := reply{status: 401}
	for i := 0; wrong.status == 401 && i < 100; i++ { // until the address has sent too many wrong keys
		wrong = b.do("POST", "/v1/responses", "no key "+strconv.Itoa(i), `{}`)
	}
	if wrong.status != 429 || !strings.Contains(wrong.body, `"rate_limit_error"`) {
		t.Errorf("too many wrong keys: %d %s, want 429, %s in it", wrong.status, wrong.body, `"rate_limit_error"`)
	}
	key, _ := b.key(`{"name":"one","role":"user","max_concurrent":1}`)
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Hang})
	defer b.leave("/api/chat", key, `{"model":"tiny"}`, false)()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	if r := b.do("POST", "/v1/responses", key, `{"model":"tiny","input":"x"}`); r.status != 429 || !strings.Contains(r.body, `"rate_limit_error"`) || r.header.Get("X-Should-Retry") != "" {
		t.Errorf("too many concurrent requests: got %d %v %s, want 429, %s in it, none", r.status, r.header, r.body, `"rate_limit_error"`)
	}
}

// A failure that a second try cannot change has X-Should-Retry: false, because otherwise Claude Code repeats a 401 for three minutes. A
// failure that may pass does not have it.
func TestWhatIsWorthASecondTry(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	post := func(path, key, body string) func() reply {
		return func() reply { return b.do("POST", path, key, body) }
	}
	upstream := func(a ollamatest.Answer) func() reply {
		return func() reply {
			b.ollama.Script("POST", "/v1/messages", a, a)
			return b.do("POST", "/v1/messages", key, `{"model":"tiny","max_tokens":1,"messages":[]}`)
		}
	}
	for _, c := range []struct {
		name   string
		ask    func() reply
		status int
		again  bool
	}{
		{"no key", post("/v1/messages", "", `{}`), 401, false},
		{"a wrong key", post("/v1/messages", "oas_0000000000_00000000000000000000000000000000000000", `{}`), 401, false},
		{"a wrong key in OpenAI's dialect", post("/v1/responses", "oas_0000000000_00000000000000000000000000000000000000", `{}`), 401, false},
		{"an admin's path", post("/api/pull", key, `{"model":"x"}`), 403, false},
		{"no such path", post("/v1/nothing", key, `{}`), 404, false},
		{"another method", func() reply { return b.do("DELETE", "/v1/messages", key, "") }, 405, false},
		{"a body that is no JSON", post("/v1/messages", key, `{`), 400, false},
		{"a body that is too large", post("/v1/messages", key, `{"x":"`+strings.Repeat("x", 1<<20)+`"}`), 413, false},
		{"a redirect", upstream(ollamatest.Answer{Status: 307, Header: http.Header{"Location": {"/"}}}), 502, false},
		{"an account of the server", upstream(ollamatest.Answer{Status: 401, Body: `{"error":"unauthorized"}`}), 502, false},
		{"Ollama breaks off", upstream(ollamatest.Answer{Fault: ollamatest.Close, FaultAt: 40}), 502, true},
		{"Ollama is busy", upstream(ollamatest.Answer{Status: 503, Body: `{"error":"server busy"}`}), 503, true},
		{"Ollama fails", upstream(ollamatest.Answer{Status: 500, Body: `{"error":"out of memory"}`}), 500, true},
	} {
		r := c.ask()
		if header := r.header.Get("X-Should-Retry"); r.status != c.status || (header == "") != c.again || !c.again && header != "false" {
			t.Errorf("%s: %d, X-Should-Retry %q; want %d, again %v\n%s", c.name, r.status, header, c.status, c.again, r.body)
		}
	}
}
