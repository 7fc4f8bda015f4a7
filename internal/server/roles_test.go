package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
)

// caller is a client, and what each kind of route must answer it.
type caller struct {
	name  string
	key   string
	admin bool
	known bool // the key is good
	want  int  // status where the key is not good enough to be looked at further
}

// TestEveryRouteForEveryCaller walks the whole table with every state that a key can be in, in every carrier. What is
// refused must never be seen by Ollama.
func TestEveryRouteForEveryCaller(t *testing.T) {
	b := start(t, setup{})
	revoked, revokedPreview := b.key(`{"name":"revoked","role":"admin"}`)
	if r := b.do("DELETE", "/api/keys/"+revokedPreview, adminSecret, ""); r.status != 200 {
		t.Fatalf("revoke: %d %s, want 200", r.status, r.body)
	}
	expired := b.expired()
	elsewhere, _ := b.key(`{"name":"elsewhere","role":"admin","allowed_ips":["192.0.2.0/24"]}`)
	callers := []caller{
		{name: "no key", want: 401},
		{name: "bad key", key: "oas_0123456789_01234567890123456789012345678901abcdef", want: 401},
		{name: "nonsense", key: "' OR 1=1--", want: 401},
		{name: "revoked", key: revoked, want: 401},
		{name: "expired", key: expired, want: 401},
		{name: "wrong address", key: elsewhere, want: 403},
		{name: "user", key: b.user(), known: true},
		{name: "admin", key: b.admin(), known: true, admin: true},
	}
	for _, line := range b.server.Table() {
		for _, c := range callers {
			b.walk(t, line, c)
		}
	}
}

func (b *bed) admin() string {
	secret, _ := b.key(`{"name":"admin","role":"admin","rate_limit":null}`)
	return secret
}

// expired is a key whose time is over: no operation makes one, so the store does.
func (b *bed) expired() string {
	b.t.Helper()
	secret, preview := b.mint()
	past := time.Now().Add(-time.Minute)
	k := api.NewKey("expired", api.RoleAdmin, nil)
	k.Preview, k.ExpiresAt, k.CreatedAt = preview, &past, past.Add(-time.Hour)
	if err := b.store.CreateKey(b.t.Context(), k, b.secret.MAC(secret), api.Change{Actor: "test", At: past.Add(-time.Hour)}); err != nil {
		b.t.Fatal(err)
	}
	return secret
}

func (b *bed) walk(t *testing.T, line server.Line, c caller) {
	path := strings.NewReplacer("{key_preview}", "oas_nosuchkey0", "{model}", "tiny", "{digest}", "sha256:"+strings.Repeat("0", 64)).Replace(line.Template)
	allowed := line.Anyone || c.known && (c.admin || !line.AdminsOnly)
	for carrier, request := range b.carriers(line, path, c.key) {
		name := fmt.Sprintf("%s %s, %s in %s", line.Method, line.Template, c.name, carrier)
		before := len(b.ollama.Requests())
		r := b.send(request)
		if allowed {
			if r.status == 401 || r.status == 403 {
				t.Errorf("%s: refused with %d %s, want not 401, not 403", name, r.status, r.body)
			}
			continue
		}
		want := c.want
		if c.known {
			want = 403
		}
		if carrier == "x-api-key" && c.name == "no key" {
			want = 401
		}
		if r.status != want {
			t.Errorf("%s: %d, want %d: %s", name, r.status, want, r.body)
		}
		if r.status == 401 && r.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", name)
		}
		if strings.Contains(r.body, c.key) && c.key != "" {
			t.Errorf("%s: the answer holds the key", name)
		}
		if seen := b.ollama.Requests(); len(seen) != before {
			t.Errorf("%s: refused, but Ollama saw %s %s, want %v of them", name, seen[before].Method, seen[before].Path, before)
		}
	}
}

// carriers are the same request with the key in each place it may stand.
func (b *bed) carriers(line server.Line, path, key string) map[string]*http.Request {
	body := ""
	if line.Method == "POST" || line.Method == "DELETE" || line.Method == "PATCH" {
		body = `{"model":"tiny","stream":false}`
		switch line.Template {
		case "/api/copy":
			body = `{"source":"tiny","destination":"other"}`
		case "/api/keys":
			body = `{"name":"walked","role":"user"}`
		case "/api/keys/{key_preview}", "/api/keys/{key_preview}/rotate":
			body = `{}`
		}
	}
	request := func(path string) *http.Request {
		req, err := http.NewRequest(line.Method, b.url+path, strings.NewReader(body))
		if err != nil {
			b.t.Fatal(err)
		}
		return req
	}
	list := map[string]*http.Request{"Authorization": request(path), "x-api-key": request(path), "Basic": request(path)}
	if key != "" {
		list["Authorization"].Header.Set("Authorization", "Bearer "+key)
		list["x-api-key"].Header.Set("x-api-key", key)
		list["Basic"].SetBasicAuth("any", key)
		if line.Ollama && !strings.Contains(key, " ") {
			list["path"] = request("/k/" + key + path)
		}
	}
	return list
}

func TestUnknownPathsAndMethods(t *testing.T) {
	b := start(t, setup{})
	admin := b.admin()
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"POST", "/api/signout", 404},
		{"GET", "/api/experimental/web_search", 404},
		{"GET", "/debug/pprof/", 404},
		{"POST", "/v1/audio/transcriptions", 404},
		{"GET", "/api/chat", 405},
		{"PUT", "/api/keys", 405},
		{"OPTIONS", "/api/chat", 405},
		{"POST", "/api/./chat", 404},
		{"POST", "/api/x/../chat", 404},
		{"POST", "/api/%63hat", 404},
		{"POST", "/api%2fchat", 404},
		{"POST", "/API/chat", 404},
		{"POST", "/api/chat;x", 404},
		{"GET", "/v1/models/..%2f..%2fapi%2fdelete", 400},
		{"POST", "/api/blobs/sha256:..%2fx", 400},
		{"GET", "/v1/models/a/b", 404},
		{"GET", "/k/" + admin + "/api/keys", 404},
		{"GET", "/k//api/tags", 404},
		{"GET", "/k//", 404},
	} {
		before := len(b.ollama.Requests())
		r := b.do(c.method, c.path, admin, `{"model":"tiny"}`)
		if r.status != c.want || !strings.Contains(r.body, `"error"`) {
			t.Errorf("%s %s: %d %s, want %v, %s in it", c.method, c.path, r.status, r.body, c.want, `"error"`)
		}
		if c.want == 405 && r.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
		if len(b.ollama.Requests()) != before {
			t.Errorf("%s %s reached Ollama, want %v of them", c.method, c.path, before)
		}
	}
}

func TestAmbiguousCredentialsAreRefused(t *testing.T) {
	b := start(t, setup{})
	one, other := b.user(), b.user()
	req, _ := http.NewRequest("GET", b.url+"/api/tags", nil)
	req.Header.Set("Authorization", "Bearer "+one)
	req.Header.Set("x-api-key", other)
	if r := b.send(req); r.status != 400 {
		t.Errorf("two that differ: %d, want 400", r.status)
	}
	req.Header.Set("x-api-key", one)
	if r := b.send(req); r.status != 200 {
		t.Errorf("two that agree: %d, want 200", r.status)
	}
	req.Header.Add("Authorization", "Bearer "+one)
	req.Header.Del("x-api-key")
	if r := b.send(req); r.status != 400 {
		t.Errorf("twice the same header: %d, want 400", r.status)
	}
}

func TestDemoKeyIsRefusedThroughAProxy(t *testing.T) {
	b := start(t, setup{})
	req, _ := http.NewRequest("GET", b.url+"/api/tags", nil)
	req.Header.Set("Authorization", "Bearer demo-user-key-67890")
	if r := b.send(req); r.status != 200 {
		t.Errorf("direct: %d, want 200", r.status)
	}
	req.Header.Set("X-Forwarded-For", "203.0.113.9")
	if r := b.send(req); r.status != 401 {
		t.Errorf("forwarded: %d, want 401", r.status)
	}
}

func TestDemoKeyIsNoHelpToAForeignPage(t *testing.T) {
	b := start(t, setup{})
	for name, change := range map[string]func(*http.Request){
		"a name that points here": func(r *http.Request) { r.Host = "evil.example:8000" },
		"an origin":               func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		"a form":                  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
	} {
		req, _ := http.NewRequest("GET", b.url+"/k/demo-user-key-67890/api/tags", nil)
		change(req)
		if r := b.send(req); r.status != 401 {
			t.Errorf("%s: %d, want 401", name, r.status)
		}
	}
}

func TestBodyThatNeverComesHoldsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	b := start(t, setup{})
	blocked, _ := b.key(`{"name":"blocked","role":"user","rate_limit":0}`)
	for _, head := range []string{
		"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + blocked + "\r\nContent-Length: 900000\r\n\r\n",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		// The client sends nothing more: the answer and the end must come all the same.
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 ") {
			t.Errorf("%.30q: %v, %q, want %q at its start", head, err, answer, "HTTP/1.1 ")
		}
	}
}
