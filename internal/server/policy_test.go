package server_test

import (
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// The gateway changes or refuses what a user's request may not set before the request goes upstream. The answer names the changes. A key's
// own policy has precedence, and an admin's request is not changed.
func TestPolicyOnTheWay(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Live.Standard = dialect.Standard(4096, time.Hour, 100) }})
	user := b.user()
	free, preview := b.key(`{"name":"free","role":"user","policy":{"num_ctx":"pass","num_gpu":"pass","max_tokens":"max:7"}}`)
	const body = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"options":{"num_ctx":99999,"num_gpu":0}}`
	for _, c := range []struct{ key, sent, says string }{
		{user, `"options":{"num_ctx":4096}`, "num_gpu dropped, num_ctx=4096"}, // the model's own num_predict is 64
		{free, `"options":{"num_predict":7,"num_ctx":99999,"num_gpu":0}`, "num_predict=7"},
		{adminSecret, `"options":{"num_ctx":99999,"num_gpu":0}`, ""},
	} {
		r := b.do("POST", "/api/chat", c.key, body)
		seen := b.ollama.RequestsTo("POST", "/api/chat")
		if got := string(seen[len(seen)-1].Body); r.status != 200 || !strings.Contains(got, c.sent) || r.header.Get("X-Policy") != c.says {
			t.Errorf("%d, X-Policy %q, upstream got %s\nwant %s", r.status, r.header.Get("X-Policy"), got, c.sent)
		}
	}
	before := len(b.ollama.Requests())
	for _, body := range []string{`{"model":"tiny","keep_alive":0}`, `{"model":"tiny","_debug_render_only":true}`} {
		if r := b.do("POST", "/api/generate", user, body); r.status != 403 || !strings.Contains(r.body, "administrator") {
			t.Errorf("%s: %d %s, want 403, %q in it", body, r.status, r.body, "administrator")
		}
	}
	if len(b.ollama.Requests()) != before {
		t.Error("a refused request went upstream")
	}
	if l := b.stats(user)["limits"].(map[string]any); l["remaining"] != 99.0 {
		t.Errorf("refusals were charged: %v, want %v", l, 99.0)
	}
	// The policy can be changed and removed. An invalid policy is refused.
	if r := b.do("PATCH", "/api/keys/"+preview, adminSecret, `{"policy":null}`); r.status != 200 || r.json(t)["policy"] != nil {
		t.Errorf("got %d %s, want 200", r.status, r.body)
	}
	if r := b.do("POST", "/api/chat", free, body); r.header.Get("X-Policy") == "num_predict=7" {
		t.Errorf("the old policy still applies: X-Policy %s, want not %q", r.header.Get("X-Policy"), "num_predict=7")
	}
	for _, policy := range []string{`{"num_ctx":"max:0"}`, `{"nothing":"drop"}`, `{"raw":"max:1"}`, `{"raw":7}`, `"drop"`} {
		if r := b.do("PATCH", "/api/keys/"+preview, adminSecret, `{"policy":`+policy+`}`); r.status != 400 {
			t.Errorf("%s: %d %s, want 400", policy, r.status, r.body)
		}
	}
}

// The gateway reserves the model's own num_predict of a key's tokens. If the server does not report one, it reserves the default.
func TestTheModelsOwnNumPredictIsReserved(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Live.Standard = dialect.Standard(4096, time.Hour, 100) }})
	for _, c := range []struct {
		name string
		show ollamatest.Answer
		own  float64
		says string
	}{
		{"it says", ollamatest.Answer{Recording: "show"}, 64, ""},
		{"it fails", ollamatest.Answer{Status: 500, Body: `{"error":"busy"}`}, 100, "num_predict=100"},
	} {
		model := strings.ReplaceAll(c.name, " ", "-")
		b.ollama.Models(model + ":latest")
		b.ollama.Script("POST", "/api/show", c.show)
		b.ollama.Forget()
		key, _ := b.key(`{"name":"` + c.name + `","role":"user","tokens_per_hour":1000}`)
		gate := make(chan struct{})
		b.ollama.Handle("POST", "/api/generate", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{HeaderGate: gate} })
		answered := make(chan reply, 1)
		go func() {
			answered <- b.do("POST", "/api/generate", key, `{"model":"`+model+`","prompt":"abcd","stream":false}`)
		}()
		b.ollama.WaitRequestTo(1, "POST", "/api/generate")
		if held := b.budgets(key)["tokens_per_hour"]["held"]; held != c.own+1 {
			t.Errorf("%s: got %v tokens reserved, want one for the prompt and %v", c.name, held, c.own)
		}
		close(gate)
		if r := <-answered; r.header.Get("X-Policy") != c.says {
			t.Errorf("%s: %d, X-Policy %q, want %q", c.name, r.status, r.header.Get("X-Policy"), c.says)
		}
	}
}
