package server_test

import (
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
)

func origins(t *testing.T, patterns ...string) func(*server.Options) {
	t.Helper()
	var list []api.Origin
	for _, p := range patterns {
		o, err := api.ParseOrigin(p)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o)
	}
	return func(o *server.Options) { o.Live.Origins = list }
}

func (b *bed) preflight(path, origin, method, headers string) reply {
	req := b.request(http.MethodOptions, path, "", "")
	req.Header.Set("Origin", origin)
	req.Header.Set("Access-Control-Request-Method", method)
	req.Header.Set("Access-Control-Request-Private-Network", "true")
	if headers != "" {
		req.Header.Set("Access-Control-Request-Headers", headers)
	}
	return b.send(req)
}

func TestPreflight(t *testing.T) {
	b := start(t, setup{change: origins(t, "chrome-extension://*", "http://localhost:*", "https://chat.example.net")})
	const sdk = "authorization,content-type,dangerously-allow-browser,x-stainless-new-field,x-title"
	for _, c := range []struct{ name, origin, method, headers, allowed string }{
		{"an extension", "chrome-extension://abcdef", "POST", sdk, sdk},
		{"a port", "http://localhost:5173", "GET", "", ""},
		{"a name", "https://chat.example.net", "DELETE", "x-api-key", "x-api-key"},
		{"fields of a session", "https://chat.example.net", "POST", "authorization, Cookie, x-charge-key,x-csrf-token", "authorization"},
	} {
		r := b.preflight("/v1/chat/completions", c.origin, c.method, c.headers)
		h := r.header
		if r.status != 204 || h.Get("Access-Control-Allow-Origin") != c.origin || h.Get("Access-Control-Allow-Methods") != c.method || h.Get("Access-Control-Allow-Headers") != c.allowed {
			t.Errorf("%s: %d %v, want 204 that allows %q", c.name, r.status, h, c.allowed)
		}
		if h.Get("Access-Control-Allow-Private-Network") != "true" {
			t.Errorf("%s: got %v, want a page on the internet to be allowed into a private network", c.name, h)
		}
		if h.Get("Access-Control-Allow-Credentials") != "" || !strings.Contains(strings.Join(h.Values("Vary"), ","), "Origin") {
			t.Errorf("%s: %v, want Vary: Origin and no credentials", c.name, h)
		}
	}
	for _, c := range []struct {
		name, origin, method string
		status               int
		says                 string
	}{
		{"another origin", "http://localhost.evil.example", "POST", 403, "CORS_ORIGINS=http://localhost.evil.example"},
		{"no name", "null", "POST", 403, "CORS_ORIGINS=null"},
		{"no origin of a browser", "https://a/b", "POST", 403, "no setting can admit it"},
		{"a star", "*", "POST", 403, "no setting can admit it"},
		{"a star as host", "http://*", "POST", 403, "no setting can admit it"},
		{"too long", "https://" + strings.Repeat("a", 300), "POST", 403, "no setting can admit it"},
		{"a key by mistake", "https://oas_0123456789", "POST", 403, "no setting can admit it"},
		{"a method that the path has not", "https://chat.example.net", "PUT", 405, "answers POST only"},
	} {
		r := b.preflight("/api/chat", c.origin, c.method, "authorization")
		if r.status != c.status || !strings.Contains(r.body, c.says) || r.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %v %s, want %d that says %q and allows nothing", c.name, r.status, r.header, r.body, c.status, c.says)
		}
	}
	if logs := b.logs.String(); !strings.Contains(logs, "CORS_ORIGINS does not admit http://localhost.evil.example") || strings.Contains(logs, "oas_0123456789") {
		t.Errorf("want the reason in the log, and not the key; got:\n%s", logs)
	}
}

// If the setting is unset, the answer and the log name the value that admits the page.
func TestPreflightWithoutTheSetting(t *testing.T) {
	b := start(t, setup{})
	r := b.preflight("/v1/messages", "chrome-extension://abcdef", "POST", "x-api-key")
	if r.status != 403 || !strings.HasPrefix(r.body, `{"type":"error"`) || !strings.Contains(r.body, "CORS_ORIGINS=chrome-extension://abcdef") {
		t.Errorf("%d %s, want 403 in Anthropic's form that names the setting", r.status, r.body)
	}
	if !strings.Contains(b.logs.String(), "CORS_ORIGINS does not admit chrome-extension://abcdef") {
		t.Errorf("the log does not name the setting:\n%s", b.logs.String())
	}
	if r := b.do(http.MethodOptions, "/v1/messages", "", ""); r.status != 405 {
		t.Errorf("OPTIONS without preflight headers: got %d, want 405", r.status)
	}
}
