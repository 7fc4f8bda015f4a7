package server_test

import (
	"net/http"
	"strings"
	"testing"
)

func TestProfiles(t *testing.T) {
	b := start(t, setup{})
	for _, c := range []struct {
		path   string
		status int
		has    string
	}{
		{"goroutine?debug=2", 200, "server.(*Server).profile"},
		{"heap", 200, ""},
		{"trace?seconds=61", 400, "1 to 60"},
		{"profile?seconds=-1", 400, "1 to 60"},
		{"cmdline", 404, "no such profile"}, // flags may contain private text
		{"symbol", 404, "no such profile"},
	} {
		r := b.do("GET", "/debug/pprof/"+c.path, adminSecret, "")
		if r.status != c.status || !strings.Contains(r.body, c.has) {
			t.Errorf("%s: got %d %.200q, want %d with %q", c.path, r.status, r.body, c.status, c.has)
		}
	}
	if r := b.do("GET", "/debug/pprof/goroutine", b.user(), ""); r.status != http.StatusForbidden {
		t.Errorf("a user's key: got %d, want 403", r.status)
	}
	request, err := http.NewRequest("GET", b.url+"/debug/pprof/goroutine", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+adminSecret)
	request.Header.Set("X-Forwarded-For", "127.0.0.1")
	if r := b.send(request); r.status != http.StatusForbidden {
		t.Errorf("through a proxy: got %d, want 403", r.status)
	}
}
