package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// Base URLs that end in a slash cause doubled slashes. They do not change the path that Ollama gets.
func TestSlashesTooMany(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	const chat = `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"x"}]}`
	for _, c := range []struct{ method, path, upstream string }{
		{"POST", "//api/chat", "/api/chat"},
		{"POST", "///api//chat//", "/api/chat"},
		{"POST", "/api/chat/", "/api/chat"},
		{"POST", "/v1//chat/completions/", "/v1/chat/completions"},
		{"GET", "/api/tags/", "/api/tags"},
		{"GET", "/v1/models/", "/v1/models"},
		{"GET", "/v1/models/tiny/", "/v1/models"},
		{"GET", "/k/KEY//api/tags", "/api/tags"},
		{"GET", "//k/KEY/api/tags/", "/api/tags"},
		{"GET", "/k//KEY/api/tags", "/api/tags"},
		{"POST", "/k/KEY///v1//chat/completions", "/v1/chat/completions"},
		{"GET", "/k/KEY", ""},
		{"GET", "/k/KEY//", ""},
		{"GET", "//", ""},
		{"GET", "//api/keys/", ""},
		{"GET", "/api//admin/usage?group_by=day", ""},
		{"GET", "/api/stats/", ""},
	} {
		before := len(b.ollama.Requests())
		secret, body := key, ""
		if strings.HasPrefix(c.path, "//api/keys") || strings.Contains(c.path, "admin") {
			secret = adminSecret
		}
		if c.method == "POST" {
			body = chat
		}
		if strings.Contains(c.path, "KEY") {
			secret = ""
		}
		r := b.do(c.method, strings.ReplaceAll(c.path, "KEY", key), secret, body)
		if r.status != 200 {
			t.Errorf("%s %s: %d %s, want 200", c.method, c.path, r.status, r.body)
		}
		got := slices.DeleteFunc(slices.Clone(b.ollama.Requests()[before:]), func(r *ollamatest.Request) bool { return r.Path == "/api/show" })
		if c.upstream == "" && len(got) > 0 || c.upstream != "" && (len(got) != 1 || got[0].Path != c.upstream) {
			t.Errorf("%s %s: Ollama got %v, want %q", c.method, c.path, got, c.upstream)
		}
	}
	client := *b.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for path, want := range map[string]string{"/docs/": "../docs", "/redoc/": "../redoc", "/docs//": "../../docs"} {
		resp, err := client.Get(b.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != 308 || got != want {
			t.Errorf("%s: %d to %q, want 308 to %q", path, resp.StatusCode, got, want)
		}
	}
}

// If a base URL is nearly right, the error message names the right path, in the form that this client shows.
func TestNearlyRightPaths(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	const native, openAI, anthropic = `{"error":"`, `{"error":{"message":"`, `{"type":"error","error":{"type":"not_found_error","message":"`
	for _, c := range []struct {
		path, begins, names string
		anthropic           bool
	}{
		{"/chat/completions", openAI, "/v1/chat/completions? The base URL that the client is set to probably needs /v1", false},
		{"/completions", openAI, "/v1/completions?", false},
		{"/embeddings", openAI, "/v1/embeddings?", false},
		{"/responses", openAI, "/v1/responses?", false},
		{"/models", openAI, "/v1/models?", false},
		{"/models", anthropic, "/v1/models?", true},
		{"/models/tiny", openAI, "/v1/models/{model}?", false},
		{"/messages", anthropic, "/v1/messages?", false},
		{"/messages/count_tokens", anthropic, "/v1/messages/count_tokens?", true},
		{"/v1/v1/messages", anthropic, "/v1/messages? Check the base URL", false},
		{"/v1/v1/chat/completions", openAI, "/v1/chat/completions? Check the base URL", false},
		{"/v1/chat/completions/chat/completions", openAI, "/v1/chat/completions?", false},
		{"/v1/api/tags", native, "/api/tags?", false},
		{"/v1/api/chat", native, "/api/chat?", false},
		{"/api/api/chat", native, "/api/chat?", false},
		{"/api/chat/api/chat", native, "/api/chat?", false},
		{"/chat", native, "/api/chat?", false},
		{"/tags", native, "/api/tags?", false},
		{"/ollama/api/tags", native, "/api/tags?", false},
		{"/api/v1/chat/completions", openAI, "/v1/chat/completions? Check the base URL", false},
		{"/openai/v1/chat/completions", openAI, "/v1/chat/completions? Check the base URL", false},
		{"/v1beta/models/tiny", openAI, "/v1/models/{model}? Check the base URL", false},
		{"/api/v1/messages", anthropic, "/v1/messages?", true},
		{"/api/chat/completions", openAI, "/v1/chat/completions?", false},
		{"/openai/v1/responses", openAI, "/v1/responses?", false},
		{"/openai/deployments/tiny/chat/completions", openAI, "/v1/chat/completions?", false},
		{"/V1/Chat/Completions", openAI, "/v1/chat/completions? Check the base URL", false},
		{"/v1/k/KEY/chat/completions", openAI, "a key comes first in the path, as in /k/KEY/v1/chat/completions", false},
		{"/api/k/KEY/api/tags", native, "a key comes first in the path, as in /k/KEY/api/tags", false},
		{"/v1/nothing", openAI, "no such path: GET / lists", false},
		{"/v1/nothing", anthropic, "no such path: GET / lists", true},
		{"/v1/messages/batches", anthropic, "no such path: GET / lists", false},
		{"/x/v1/nothing", openAI, "no such path: GET / lists", false},
		{"/nothing", anthropic, "no such path: GET / lists", true},
		{"/nothing", native, "no such path: GET / lists", false},
		{"/api/hello", native, "no such path: GET / lists", false},
		{"/api/%63hat", native, "no such path: GET / lists", false},
		{"/" + strings.Repeat("chat/", 1500) + "completions/chat", native, "/api/chat?", false},
	} {
		req := b.request("POST", strings.ReplaceAll(c.path, "KEY", key), key, `{"model":"tiny"}`)
		if c.anthropic {
			req.Header.Set("anthropic-version", "2023-06-01")
		}
		r := b.send(req)
		if r.status != 404 || !strings.HasPrefix(r.body, c.begins) || !strings.Contains(r.body, c.names) {
			t.Errorf("%.80s: %d %s, want 404 that begins with %s and says %q", c.path, r.status, r.body, c.begins, c.names)
		}
		if strings.Contains(r.body, key) {
			t.Errorf("%s: the answer contains the key, want no key", c.path)
		}
	}
	if got := b.ollama.RequestsTo("POST", "/v1/chat/completions"); len(got) > 0 {
		t.Errorf("%d requests reached Ollama, want none", len(got))
	}
}

// Each route that answers GET also answers HEAD, for the same role.
func TestHeadWhereGetIs(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"user","role":"user"}`)
	fill := strings.NewReplacer("{key_preview}", preview, "{model}", "tiny", "{file}", "icon.svg", "{request_id}", "none", "{name}", "gpu1")
	for _, line := range b.server.Table() {
		if line.Method != "GET" {
			continue
		}
		path := fill.Replace(line.Template)
		for name, secret := range map[string]string{"admin": adminSecret, "user": key, "no key": ""} {
			get, head := b.do("GET", path, secret, ""), b.do("HEAD", path, secret, "")
			if head.status != get.status || head.body != "" {
				t.Errorf("HEAD %s, %s: %d %q, want %d and no body", path, name, head.status, head.body, get.status)
			}
		}
	}
	for path, want := range map[string]string{"/v1/models": "GET, HEAD", "/api/tags": "GET, HEAD", "/api/keys": "POST, GET, HEAD", "/api/chat": "POST"} {
		r := b.do("PUT", path, key, "")
		if got := r.header.Get("Allow"); r.status != 405 || got != want {
			t.Errorf("PUT %s: %d, Allow %q, want 405 and %q", path, r.status, got, want)
		}
	}
	if r := b.do("HEAD", "/api/chat", key, ""); r.status != 405 {
		t.Errorf("HEAD /api/chat: %d, want 405", r.status)
	}
}

// Codex tries a WebSocket first, and continues over HTTP when it is refused with this status.
func TestNoWebSocket(t *testing.T) {
	b := start(t, setup{})
	for path, want := range map[string]int{"/v1/responses": 426, "/api/chat": 426, "/v1/responses/": 426, "/v1/models": 200, "/v1/realtime": 404} {
		req := b.request("GET", path, b.user(), "")
		for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
			req.Header.Set(name, value)
		}
		r := b.send(req)
		if r.status != want {
			t.Errorf("%s: %d %s, want %d", path, r.status, r.body, want)
		}
		if want == 426 && (r.header.Get("Upgrade") != "HTTP/1.1" || r.header.Get("Allow") != "POST" || !strings.Contains(r.body, "does not support WebSocket")) {
			t.Errorf("%s: got %v %s, want Upgrade, Allow and the message", path, r.header, r.body)
		}
	}
}

// The requests with which clients probe a server do not write log lines for the operator.
func TestProbesOfClients(t *testing.T) {
	b := start(t, setup{})
	for _, probe := range []string{
		"HEAD /api/hello", "GET /api/hello", "HEAD /", "GET /favicon.ico", "GET /robots.txt", "POST /api/event_logging/batch", "GET /v1", "HEAD /v1/", "GET /props", "GET /v1/props",
		"GET /api/v1/models", "GET /.well-known/oauth-protected-resource", "GET /v1/me", "HEAD /api", "GET /version", "OPTIONS /",
	} {
		method, path, _ := strings.Cut(probe, " ")
		if r := b.do(method, path, "", ""); r.status != 200 && r.status != 404 && r.status != 405 || method == "HEAD" && r.body != "" {
			t.Errorf("%s: %d %s, want 200 or 404", probe, r.status, r.body)
		}
	}
	b.stop()
	if logs := b.logs.String(); strings.Contains(logs, `"level":"ERROR"`) || strings.Contains(logs, `"level":"WARN"`) {
		t.Errorf("the log has lines for an operator:\n%s", logs)
	}
}

// The ollama command requests the account before it pushes, signs in or signs out.
func TestAccount(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	const signIn = `{"error":"unauthorized","signin_url":"https://ollama.com/connect?name=gpu1&key=c3NoLWVk"}`
	b.ollama.Script("POST", "/api/me", ollamatest.Answer{Status: 401, Body: signIn}, ollamatest.Answer{Body: `{"id":"1","name":"alice"}`}, ollamatest.Answer{Status: 503, Body: `{"error":"account unavailable"}`})
	if r := b.do("POST", "/api/me", key, ""); r.status != 403 || !strings.Contains(r.body, "needs an admin key") {
		t.Errorf("a user: %d %s, want 403 with the message for users", r.status, r.body)
	}
	if r := b.do("POST", "/api/me", "", ""); r.status != 401 {
		t.Errorf("no key: %d, want 401", r.status)
	}
	if r := b.do("POST", "/k/"+adminSecret+"/api/me", "", ""); r.status != 401 || r.json(t)["signin_url"] != "https://ollama.com/connect?name=gpu1&key=c3NoLWVk" {
		t.Errorf("signed out: %d %s, want 401 with signin_url", r.status, r.body)
	}
	if r := b.do("POST", "/api/me", adminSecret, ""); r.status != 200 || r.json(t)["name"] != "alice" {
		t.Errorf("signed in: %d %s, want 200 with the name", r.status, r.body)
	}
	if r := b.do("POST", "/api/me", adminSecret, ""); r.status != 503 || r.json(t)["error"] != "account unavailable" {
		t.Errorf("unavailable: %d %s, want 503 as Ollama says it", r.status, r.body)
	}
	if got := b.ollama.RequestsTo("POST", "/api/me"); len(got) != 3 || len(got[0].Body) > 0 {
		t.Errorf("Ollama got %d requests, want 3 without a body", len(got))
	}
	if n := b.stats(adminSecret)["total_requests"]; n != 0.0 {
		t.Errorf("got %v requests on the books, want none", n)
	}
}
