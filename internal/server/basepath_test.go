package server_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"ollama-api-service/internal/server"
)

// With BASE_PATH, each route works as it does at the root, both for proxies that keep the base path and for those that remove it. Texts
// that name a path name the one that clients see.
func TestBelowAPath(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.BasePath = "/team/ollama" }})
	key := b.user()
	const chat = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":false}`
	for _, base := range []string{"", "/team/ollama", "//team/ollama/"} {
		for path, want := range map[string]int{
			"": 200, "/": 200, "/docs": 200, "/redoc": 200, "/openapi.json": 200, "/healthz": 200, "/api/tags": 200, "/v1/models": 200, "/v1/models/tiny": 200,
			"/k/" + key + "/api/tags": 200, "/docs/docs.js": 200, "/metrics": 403, "/nothing": 404, "/team/ollama/api/tags": 404,
		} {
			if base == "" && strings.HasPrefix(path, "/team") {
				continue
			}
			if r := b.do("GET", base+path, key, ""); r.status != want && base+path != "" {
				t.Errorf("GET %s: %d, want %d: %.200s", base+path, r.status, want, r.body)
			}
		}
		if r := b.do("POST", base+"/api/chat", key, chat); r.status != 200 {
			t.Errorf("chat below %q: %d %s, want 200", base, r.status, r.body)
		}
		if r := b.do("GET", base+"/api/keys", adminSecret, ""); r.status != 200 {
			t.Errorf("keys below %q: %d %s, want 200", base, r.status, r.body)
		}
	}
	for _, path := range []string{"/team", "/team/ollama2/api/tags", "/Team/ollama/docs", "/team%2Follama/docs", "/team/ollama/../ollama/docs"} {
		if r := b.do("GET", path, key, ""); r.status != 404 {
			t.Errorf("GET %s: %d, want 404", path, r.status)
		}
	}
	says := func(path, what string) {
		t.Helper()
		if r := b.do("GET", path, key, ""); !strings.Contains(r.body, what) {
			t.Errorf("GET %s does not say %s: %.300s, want %v in it", path, what, r.body, what)
		}
	}
	says("/team/ollama", `"documentation":"/team/ollama/docs"`)
	says("/team/ollama/openapi.json", `"servers":[{"description":"This service","url":"/team/ollama"}]`)
	says("/team/ollama/v1/api/tags", "no such path; did you mean /team/ollama/api/tags?")
	says("/team/ollama/chat/completions", "did you mean /team/ollama/v1/chat/completions?")
	says("/team/ollama/x/k/KEY/api/tags", "as in /team/ollama/k/KEY/api/tags")
	says("/team/ollama/nothing", "GET /team/ollama/ lists")
	says("/team/ollama/docs/nothing", "GET /team/ollama/docs is")

	// A page loads its files from below the base path, wherever a redirect has brought its reader from.
	b.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req := b.request("GET", "/team/ollama/docs/", "", "")
	r := b.send(req)
	to, err := req.URL.Parse(r.header.Get("Location"))
	if err != nil || r.status != 308 || to.Path != "/team/ollama/docs" {
		t.Fatalf("%d to %v (%v), want 308, %q", r.status, to, err, "/team/ollama/docs")
	}
	page := b.do("GET", to.Path, "", "")
	links := regexp.MustCompile(`(?:href|src)="([^"]+)"`).FindAllStringSubmatch(page.body, -1)
	if len(links) < 5 {
		t.Fatalf("got %d links on the page, want at least 5", len(links))
	}
	for _, link := range links {
		at, err := to.Parse(link[1])
		if err != nil || !strings.HasPrefix(at.Path, "/team/ollama/") {
			t.Errorf("the page names %s, want %q at its start", link[1], "/team/ollama/")
			continue
		}
		if r := b.do("GET", at.RequestURI(), "", ""); r.status != 200 {
			t.Errorf("%s: %d, want 200", at, r.status)
		}
	}
}
