package server_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

func withAliases(t *testing.T, texts ...string) setup {
	t.Helper()
	var list api.Aliases
	for _, text := range texts {
		a, err := api.ParseAlias(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return setup{change: func(o *server.Options) { o.Live.Aliases = list }}
}

// An alias is authorized and recorded as the model that it means. The answer has the name that the client sent.
func TestAliases(t *testing.T) {
	b := start(t, withAliases(t, "claude-*=tiny", "gpt-4o=tiny", "hidden=secret"))
	b.ollama.Models("tiny:latest", "secret:latest")
	key, _ := b.key(`{"name":"some","role":"user","models":["tiny"]}`)
	paths := []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
	for _, path := range paths {
		for _, stream := range []string{"true", "false"} {
			b.ollama.Script("POST", path, ollamatest.Answer{Tokens: 3})
			r := b.do("POST", path, key, `{"model":"claude-opus-4","max_tokens":9,"messages":[],"stream":`+stream+`}`)
			if r.status != 200 || r.err != nil || strings.Contains(r.body, `"tiny"`) || !strings.Contains(r.body, `"model":"claude-opus-4"`) {
				t.Errorf("%s stream %s: %d %v\n%s", path, stream, r.status, r.err, r.body)
			}
			if seen := b.ollama.RequestsTo("POST", path); !strings.Contains(string(seen[len(seen)-1].Body), `"model":"tiny"`) {
				t.Errorf("%s: upstream got %s, want %s in it", path, seen[len(seen)-1].Body, `"model":"tiny"`)
			}
		}
	}
	if m := b.stats(key)["requests_by_model"].(map[string]any); len(m) != 1 || m["tiny:latest"] != float64(2*len(paths)) {
		t.Errorf("books by model: %v, want 1 of them, %v", m, float64(2*len(paths)))
	}
	// A model that the key may not use is reported as unknown, with the name that the client sent.
	if r := b.do("POST", "/api/chat", key, `{"model":"hidden","messages":[]}`); r.status != 404 || !strings.Contains(r.body, "'hidden'") || strings.Contains(r.body, "secret") {
		t.Errorf("hidden: %d %s, want 404, %q in it, no %q", r.status, r.body, "'hidden'", "secret")
	}
	if r := b.do("POST", "/api/show", key, `{"model":"gpt-4o"}`); r.status != 200 {
		t.Errorf("show: %d %s, want 200", r.status, r.body)
	}
	for path, want := range map[string]string{"/api/tags": `"name":"gpt-4o"`, "/v1/models": `"id":"gpt-4o"`, "/v1/models/gpt-4o": `"id":"gpt-4o"`, "/v1/models/claude-x": `"id":"claude-x"`} {
		if r := b.do("GET", path, key, ""); r.status != 200 || !strings.Contains(r.body, want) || strings.Contains(r.body, "hidden") {
			t.Errorf("%s: %d %s, want 200, %v in it, no %q", path, r.status, r.body, want, "hidden")
		}
	}
	if r := b.do("GET", "/api/ps", key, ""); strings.Contains(r.body, "gpt-4o") {
		t.Errorf("ps: %s, want no %q", r.body, "gpt-4o")
	}
	// Changes of models use their real names, not aliases.
	b.do("DELETE", "/api/delete", adminSecret, `{"model":"gpt-4o"}`)
	if seen := b.ollama.WaitRequestTo(1, "DELETE", "/api/delete"); !strings.Contains(string(seen.Body), "gpt-4o") {
		t.Errorf("delete reached upstream as %s, want %q in it", seen.Body, "gpt-4o")
	}
}

// An answer that is too long for the buffer also has the alias, whether the name is at its beginning or its end.
func TestAliasOfALongAnswer(t *testing.T) {
	b := start(t, withAliases(t, "ada=tiny"))
	key := b.user()
	numbers := strings.Repeat("0.123456789,", 200_000) + "1"
	for path, body := range map[string]string{
		"/api/embed":     `{"model":"tiny","embeddings":[[` + numbers + `]],"total_duration":5,"load_duration":1,"prompt_eval_count":7}`,
		"/v1/embeddings": `{"object":"list","data":[{"object":"embedding","embedding":[` + numbers + `],"index":0}],"model":"tiny","usage":{"prompt_tokens":7,"total_tokens":7}}`,
	} {
		b.ollama.Script("POST", path, ollamatest.Answer{Body: body})
		r := b.do("POST", path, key, `{"model":"ada","input":"x"}`)
		if want := strings.Replace(body, `"tiny"`, `"ada"`, 1); r.status != 200 || r.err != nil || r.body != want {
			t.Errorf("%s: %d %v, %d bytes, want %d", path, r.status, r.err, len(r.body), len(want))
		}
	}
	if st := b.stats(key); st["prompt_tokens"] != 14.0 || st["estimated_requests"] != 0.0 {
		t.Errorf("books: %v, want %v, %v", st, 14.0, 0.0)
	}
}

func TestCountTokensIsAnsweredHere(t *testing.T) {
	b := start(t, setup{})
	key, _ := b.key(`{"name":"some","role":"user","models":["tiny"],"rate_limit":1}`)
	const text = `{"model":"tiny","system":"12345678","messages":[{"role":"user","content":[{"type":"text","text":"12345678"},{"type":"image","source":{"type":"base64","data":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}]}]}`
	for range 3 { // not counted
		if r := b.do("POST", "/v1/messages/count_tokens", key, text); r.status != 200 || r.body != `{"input_tokens":4}` {
			t.Errorf("got %d %s, want 200", r.status, r.body)
		}
	}
	with := b.do("POST", "/v1/messages/count_tokens", key, strings.Replace(text, `"system"`, `"tools":[{"name":"look","input_schema":{"type":"object"}}],"system"`, 1))
	if n := with.json(t)["input_tokens"].(float64); n < 16 || n > 18 {
		t.Errorf("with a tool: %v, want at least 16, at most 18", n)
	}
	if r := b.do("POST", "/v1/messages/count_tokens", key, `{"model":"other","messages":[]}`); r.status != 404 || r.json(t)["type"] != "error" {
		t.Errorf("a model that the key may not use: got %d %s, want 404, %q", r.status, r.body, "error")
	}
	if seen := b.ollama.RequestsTo("POST", "/v1/messages/count_tokens"); len(seen) != 0 {
		t.Error("the request went upstream, want it refused")
	}
}

// On the paths that both dialects share, Anthropic's clients identify themselves with a header.
func TestModelsInAnthropicsShape(t *testing.T) {
	b := start(t, setup{})
	b.ollama.Models("tiny:latest", "secret:latest")
	key, _ := b.key(`{"name":"some","role":"user","models":["tiny"]}`)
	ask := func(path, key string) reply {
		req, _ := http.NewRequest("GET", b.url+path, nil)
		req.Header.Set("anthropic-version", "2023-06-01")
		req.Header.Set("x-api-key", key)
		return b.send(req)
	}
	const entry = `{"type":"model","id":"tiny:latest","display_name":"tiny:latest","created_at":"2026-11-23T12:34:43Z"}`
	if r := ask("/v1/models", key); r.status != 200 || r.body != `{"data":[`+entry+`],"has_more":false,"first_id":"tiny:latest","last_id":"tiny:latest"}` {
		t.Errorf("list: %d %s", r.status, r.body)
	}
	if r := ask("/v1/models/tiny", key); r.status != 200 || r.body != strings.ReplaceAll(entry, "tiny:latest", "tiny") {
		t.Errorf("one: %d %s", r.status, r.body)
	}
	for _, r := range []reply{ask("/v1/models/secret", key), ask("/v1/models", "wrong")} {
		// The message is also at the top level, and the id in a header of its own, because their SDKs read them there.
		v := r.json(t)
		inner, _ := v["error"].(map[string]any)
		compare(t, fmt.Sprintf("got %d %s", r.status, r.body),
			fact{`v["type"]`, v["type"], "error"},
			fact{`v["request_id"]`, v["request_id"], r.header.Get("X-Request-Id")},
			fact{`r.header.Get("Request-Id")`, r.header.Get("Request-Id"), v["request_id"]},
			fact{`v["message"] == nil`, v["message"] == nil, false},
			fact{`v["message"]`, v["message"], inner["message"]},
		)
	}
	b.ollama.Script("GET", "/v1/models", ollamatest.Answer{Body: `{"object":"list","data":null}`})
	if r := ask("/v1/models", key); r.body != `{"data":[],"has_more":false,"first_id":null,"last_id":null}` {
		t.Errorf("empty: %s, want %s", r.body, `{"data":[],"has_more":false,"first_id":null,"last_id":null}`)
	}
}

// If a backend is too old for a route, the error names the version that the route needs. Nothing is charged or sent.
func TestBackendTooOld(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) {}})
	b.ollama.Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"0.6.5"}`})
	b.backend.Probe(t.Context())
	key := b.user()
	for path, needs := range map[string]string{"/v1/responses": "0.13.3", "/v1/messages": "0.14.0"} {
		r := b.do("POST", path, key, `{"model":"tiny","max_tokens":1,"messages":[],"input":"x"}`)
		compare(t, fmt.Sprintf("%s: %d %v %s", path, r.status, r.header, r.body),
			fact{"r.status", r.status, 501},
			fact{`strings.Contains(r.body, "0.6.5")`, strings.Contains(r.body, "0.6.5"), true},
			fact{"strings.Contains(r.body, needs)", strings.Contains(r.body, needs), true},
			fact{`r.header.Get("X-Should-Retry")`, r.header.Get("X-Should-Retry"), "false"},
			fact{`r.header.Get("Retry-After")`, r.header.Get("Retry-After"), ""},
		)
		if got := r.json(t)["type"] == "error"; got != (path == "/v1/messages") {
			t.Errorf("%s answered in the wrong dialect: %s", path, r.body)
		}
		if len(b.ollama.RequestsTo("POST", path)) != 0 {
			t.Errorf("%s went upstream, want 0 of them", path)
		}
	}
	if l := b.stats(key)["limits"].(map[string]any); l["remaining"] != 100.0 {
		t.Errorf("charged: %v, want %v", l, 100.0)
	}
	// If the version is unknown, the request goes to the backend, which answers itself.
	b.ollama.Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"0.0.0"}`})
	b.backend.Probe(t.Context())
	b.ollama.Script("POST", "/v1/messages", ollamatest.Answer{Recording: "error-path"})
	if r := b.do("POST", "/v1/messages", key, `{"model":"tiny","max_tokens":1,"messages":[]}`); r.status != 501 || !strings.Contains(r.body, "0.14.0") {
		t.Errorf("got %d %s, want 501 with 0.14.0", r.status, r.body)
	}
}

// Ollama searches the web on the internet with its own account. Without the permission for cloud models, the gateway removes this tool, and
// the others that a provider would run, from a request and serves the rest.
func TestHostedToolsNeedAllowCloud(t *testing.T) {
	b := start(t, setup{})
	cloud, _ := b.key(`{"name":"cloud","role":"user","allow_cloud":true}`)
	for path, tools := range map[string]string{
		"/v1/messages":         `[{"name":"x","input_schema":{}},{"type":"web_search_20250305","name":"web_search"}]`,
		"/v1/responses":        `[{"type":"function","name":"web_search"},{"type":"web_search_preview"}]`,
		"/v1/chat/completions": `[{"type":"function","function":{"name":"x"}},{"type":"web_search"}]`,
		"/api/chat":            `[{"type":"function","function":{"name":"x"}},{"type":"web_search"}]`,
	} {
		body := `{"model":"tiny","max_tokens":1,"messages":[],"input":"x","tools":` + tools + `}`
		last := func() string {
			got := b.ollama.RequestsTo("POST", path)
			return string(got[len(got)-1].Body)
		}
		for name, key := range map[string]string{"user": b.user(), "admin": adminSecret} {
			r := b.do("POST", path, key, body)
			if policy := r.header.Get("X-Policy"); r.status != 200 || !strings.HasPrefix(policy, "tool web_search") || strings.Contains(last(), `"type":"web_search`) {
				t.Errorf("%s, %s: %d %q, Ollama got %s, want 200, %q at its start, no %s", path, name, r.status, policy, last(), "tool web_search", `"type":"web_search`)
			}
		}
		if r := b.do("POST", path, cloud, body); r.status != 200 || r.header.Get("X-Policy") != "" || !strings.Contains(last(), tools) {
			t.Errorf("%s with allow_cloud: %d %q, Ollama got %s, want 200, none, %v in it", path, r.status, r.header.Get("X-Policy"), last(), tools)
		}
		if r := b.do("POST", path, cloud, strings.Replace(body, `"tools"`, `"Tools"`, 1)); r.status != 400 {
			t.Errorf("%s with another spelling: %d %s, want 400", path, r.status, r.body)
		}
		if r := b.do("POST", path, b.user(), strings.Replace(body, `{"type":"web_search`, `{"Type":"web_search`, 1)); r.status != 400 {
			t.Errorf("%s with another spelling of an inner field: %d %s, want 400", path, r.status, r.body)
		}
	}
	// Codex adds web_search to each request.
	codex, err := os.ReadFile("../../testdata/codex-0.171.0.request.json")
	if err != nil {
		t.Fatal(err)
	}
	if r := b.do("POST", "/v1/responses", b.user(), string(codex)); r.status != 200 || r.header.Get("X-Policy") != "tool web_search dropped" {
		t.Errorf("Codex: %d %q %s, want 200, %q", r.status, r.header.Get("X-Policy"), r.body, "tool web_search dropped")
	}
}

// The error event of a Responses stream continues the numbering of the events, and has its message in each field that clients read.
func TestResponsesErrorEvent(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	b.ollama.Script("POST", "/v1/responses", ollamatest.Answer{Tokens: 2, NoTerminal: true})
	r := b.do("POST", "/v1/responses", key, `{"model":"tiny","input":"x","stream":true}`)
	events := strings.Split(strings.TrimSpace(r.body), "\n\n")
	const want = "event: error\n" + `data: {"type":"error","sequence_number":9,"code":"upstream_error","message":"the answer of the Ollama server ended too early: try again","param":null,` +
		`"error":{"message":"the answer of the Ollama server ended too early: try again","type":"api_error","param":null,"code":"upstream_error"}}`
	if got := events[len(events)-2]; got != want || len(events) != 11 || r.err != nil {
		t.Errorf("%d events, err %v, the last but one:\n%s\nwant\n%s", len(events), r.err, got, want)
	}
}

// Each route fails in the dialect that the table gives it.
func TestRoutesFailInTheirDialect(t *testing.T) {
	b := start(t, setup{})
	for _, line := range b.server.Table() {
		if !slices.Contains([]string{"POST", "GET"}, line.Method) || line.Anyone {
			continue
		}
		r := b.do(line.Method, strings.NewReplacer("{model}", "tiny", "{key_preview}", "oas_0123456789", "{digest}", "x").Replace(line.Template), "wrong", "")
		v := r.json(t)
		_, object := v["error"].(map[string]any)
		shape := "native"
		switch {
		case v["type"] == "error":
			shape = "anthropic"
		case object:
			shape = "openai"
		}
		want := map[string]string{"native": "native", "openai": "openai", "responses": "openai", "anthropic": "anthropic"}[line.Family]
		if r.status != 401 || shape != want {
			t.Errorf("%s %s: got %d in the shape %s, want %s", line.Method, line.Template, r.status, shape, want)
		}
	}
}
