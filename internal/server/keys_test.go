package server_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
)

func TestLifeOfAKey(t *testing.T) {
	b := start(t, setup{})
	r := b.do("POST", "/api/keys", adminSecret, `{"name":"Production API Key","role":"user","rate_limit":500}`)
	v := r.json(t)
	secret, preview := v["api_key"].(string), v["key_preview"].(string)
	if r.status != 200 || !strings.HasPrefix(secret, preview+"_") || len(secret) != 53 || v["rate_limit"] != 500.0 || v["role"] != "user" ||
		v["name"] != "Production API Key" || v["created_at"] == nil || v["$schema"] != nil {
		t.Fatalf("created: %d %s", r.status, r.body)
	}
	if r := b.do("GET", "/api/keys", adminSecret, ""); r.json(t)["total"] != 1.0 || strings.Contains(r.body, secret) {
		t.Errorf("listed: %s, want %v, no secret", r.body, 1.0)
	}
	if r := b.do("GET", "/api/keys/"+preview, adminSecret, ""); r.json(t)["name"] != "Production API Key" {
		t.Errorf("one: %d %s, want %q", r.status, r.body, "Production API Key")
	}
	if r := b.do("PATCH", "/api/keys/"+preview, adminSecret, `{"rate_limit":null,"models":["tiny"],"note":"for the sales team"}`); r.json(t)["rate_limit"] != nil || r.json(t)["name"] != "Production API Key" {
		t.Errorf("changed: %d %s, want nil, %q", r.status, r.body, "Production API Key")
	}
	if r := b.do("PATCH", "/api/keys/"+preview, adminSecret, `{"models":null,"rate_limit":7}`); r.json(t)["rate_limit"] != 7.0 || r.json(t)["models"] != nil || r.json(t)["note"] != "for the sales team" {
		t.Errorf("changed back: %d %s, want %v, nil, %q", r.status, r.body, 7.0, "for the sales team")
	}
	rotated := b.do("POST", "/api/keys/"+preview+"/rotate", adminSecret, "").json(t)["api_key"].(string)
	if rotated == secret || !strings.HasPrefix(rotated, preview+"_") {
		t.Errorf("rotated to %d characters", len(rotated))
	}
	if r := b.do("GET", "/api/tags", secret, ""); r.status != 200 || r.header.Get("Deprecation") == "" {
		t.Errorf("old secret within grace: %d %v, want 200, a text", r.status, r.header)
	}
	if r := b.do("GET", "/api/tags", rotated, ""); r.status != 200 || r.header.Get("Deprecation") != "" {
		t.Errorf("new secret: %d, want 200, none", r.status)
	}
	if k, err := b.store.Key(t.Context(), preview); err != nil || time.Until(k.PreviousUntil).Round(time.Hour) != 24*time.Hour {
		t.Errorf("without grace_seconds the old secret works until %v, want a day (%v)", k.PreviousUntil, err)
	}
	for _, body := range []string{"", `{"grace_seconds":0}`} {
		if r := b.do("POST", "/api/keys/"+preview+"/rotate", adminSecret, body); r.status != 409 || !strings.Contains(r.body, "force=true") {
			t.Errorf("another rotation within the grace: %d %s, want 409, %q in it", r.status, r.body, "force=true")
		}
	}
	again := b.do("POST", "/api/keys/"+preview+"/rotate?force=true", adminSecret, `{"grace_seconds":0}`).json(t)["api_key"].(string)
	if r := b.do("GET", "/api/tags", rotated, ""); r.status != 401 {
		t.Errorf("old secret without grace: %d, want 401", r.status)
	}
	if r := b.do("DELETE", "/api/keys/"+preview, adminSecret, ""); r.status != 200 || !strings.Contains(r.body, "revoked_at") {
		t.Errorf("revoked: %d %s, want 200, %q in it", r.status, r.body, "revoked_at")
	}
	if r := b.do("GET", "/api/tags", again, ""); r.status != 401 {
		t.Errorf("after revoking: %d, want 401", r.status)
	}
	if r := b.do("GET", "/api/keys/"+preview, adminSecret, ""); r.status != 200 || r.json(t)["revoked_at"] == nil {
		t.Errorf("the record of the revoked key: got %d %s, want 200", r.status, r.body)
	}
	entries, _, err := b.store.Audit(t.Context(), store.AuditQuery{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, e := range entries {
		actions = append(actions, fmt.Sprintf("%s %s by %s from %s", e.Action, e.Target, e.Actor, e.From))
	}
	if got := strings.Join(actions, "\n"); len(entries) != 6 || !strings.Contains(got, "key.revoke "+preview+" by env-admin from 127.0.0.1") {
		t.Errorf("audit:\n%s", got)
	}
}

func TestOwnerOfAKey(t *testing.T) {
	b := start(t, setup{})
	_, anna := b.key(`{"name":"laptop","role":"user","owner":"Anna"}`)
	_, bert := b.key(`{"name":"laptop","role":"user"}`)
	owned := func(query string) string {
		var all []string
		for _, k := range b.do("GET", "/api/keys"+query, adminSecret, "").json(t)["api_keys"].([]any) {
			all = append(all, k.(map[string]any)["key_preview"].(string))
		}
		return strings.Join(all, " ")
	}
	if got := owned("?owner=Anna"); got != anna {
		t.Errorf("the keys of Anna are %q, want %q", got, anna)
	}
	if r := b.do("PATCH", "/api/keys/"+bert, adminSecret, `{"owner":"Bert & Co"}`); r.status != 200 || r.json(t)["owner"] != "Bert & Co" {
		t.Errorf("PATCH: %d %s, want the owner Bert & Co", r.status, r.body)
	}
	if got := owned("?owner=Bert%20%26%20Co&role=user"); got != bert {
		t.Errorf("the keys of Bert & Co are %q, want %q", got, bert)
	}
	if got := owned("?owner=Bert%20%26%20Co&role=admin") + owned("?owner=anna") + owned("?owner=Ann"); got != "" {
		t.Errorf("%q was found by another role or a similar owner, want none", got)
	}
	if r := b.do("PATCH", "/api/keys/"+bert, adminSecret, `{"owner":null,"note":"moved"}`); r.json(t)["owner"] != "Bert & Co" {
		t.Errorf("after null, which is as if absent, the key is %s, want the owner Bert & Co", r.body)
	}
	for _, owner := range []string{strings.Repeat("n", 101), " Anna", `a\nb`, `a\u202eb`} {
		if r := b.do("PATCH", "/api/keys/"+bert, adminSecret, `{"owner":"`+owner+`"}`); r.status != http.StatusBadRequest || !strings.Contains(r.body, "owner") {
			t.Errorf("owner %.10q: %d %s, want 400 that names owner", owner, r.status, r.body)
		}
	}
}

func TestRefusedKeys(t *testing.T) {
	b := start(t, setup{})
	_, preview := b.key(`{"name":"k","role":"user"}`)
	for _, body := range []string{
		`{}`, `{"name":"","role":"user"}`, `{"name":"x"}`, `{"name":"x","role":"root"}`, `{"name":"x","role":["admin"]}`, `{"name":"x","role":null}`,
		`{"name":"x","role":"user","rate_limit":-1}`, `{"name":"x","role":"user","rate_limit":1.5}`, `{"name":"x","role":"user","rate_limit":"10"}`,
		`{"name":"x","role":"user","rate_limit":9223372036854775808}`, `{"name":"x","role":"user","max_concurrent":0}`,
		`{"name":"x","role":"user","unknown":1}`, `{"name":"x","role":"user","id":"y"}`, `{"name":"x","role":"user","tokens_per_hour":-1}`, `{"name":"x","role":"user","tokens_per_day":1.5}`,
		`{"name":"x","role":"user","gpu_seconds_per_day":"5"}`, `{"name":"x","role":"user","max_tokens_per_request":0}`, `{"name":"x","role":"user","strict":"yes"}`,
		`{"name":"x","role":"user","weight":0}`, `{"name":"x","role":"user","weight":1000.1}`, `{"name":"x","role":"user","weight":"2"}`, `{"name":"x","role":"user","class":"night"}`,
		`{"name":"x","role":"user","Role":"admin"}`, `{"name":"x","role":"user","role":"admin"}`, `{"name":"x","Role":"admin"}`,
		`{"name":"x","role":"user","expires_at":"2001-01-01T00:00:00Z"}`, `{"name":"x","role":"user","expires_at":"tomorrow"}`, `{"name":"x","role":"user","expires_at":"9999-01-01T00:00:00Z"}`,
		`{"name":"x","role":"user","allowed_ips":["300.1.1.1"]}`, `{"name":"x","role":"user","models":["a b"]}`, `{"name":"x","role":"user","models":"tiny"}`,
		`{"name":"a\nb","role":"user"}`, `{"name":"a\u202eb","role":"user"}`, `{"name":"` + strings.Repeat("n", 10240) + `","role":"user"}`, `[]`, `{"name":"x","role":"user"} {}`, ``,
	} {
		r := b.do("POST", "/api/keys", adminSecret, body)
		if r.status != http.StatusBadRequest || r.json(t)["detail"] == nil || r.json(t)["error"] == nil || strings.Contains(r.body, "300.1") {
			t.Errorf("%.80s: %d %s", body, r.status, r.body)
		}
	}
	for _, body := range []string{`{"grace_seconds":-1}`, `{"grace_seconds":315360000}`, `{"grace":1}`} {
		if r := b.do("POST", "/api/keys/"+preview+"/rotate", adminSecret, body); r.status != 400 {
			t.Errorf("rotate %s: %d %s, want 400", body, r.status, r.body)
		}
	}
	for _, path := range []string{"/api/keys/oas_0123456789", "/api/keys/..%2f", "/api/keys/" + preview[:8], "/api/keys/" + strings.ToUpper(preview)} {
		if r := b.do("DELETE", path, adminSecret, ""); r.status != 404 {
			t.Errorf("DELETE %s: %d %s, want 404", path, r.status, r.body)
		}
	}
	if r := b.do("GET", "/api/keys?x=1", adminSecret, ""); r.status != 400 {
		t.Errorf("an unknown query was taken: %d, want 400", r.status)
	}
	if r := b.do("GET", "/api/keys", adminSecret, ""); r.json(t)["total"] != 1.0 {
		t.Errorf("a refused request created a key: %s, want %v", r.body, 1.0)
	}
}

func TestLastAdminStays(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Live.StaticAdmin = false }})
	admin, preview := b.key(`{"name":"only","role":"admin"}`)
	for _, c := range []struct{ method, body string }{{"DELETE", ""}, {"PATCH", `{"role":"user"}`}, {"PATCH", `{"expires_at":"2030-01-01T00:00:00Z"}`}} {
		if r := b.do(c.method, "/api/keys/"+preview, admin, c.body); r.status != http.StatusConflict {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.body, r.status, r.body, http.StatusConflict)
		}
	}
	b.key(`{"name":"second","role":"admin"}`)
	if r := b.do("DELETE", "/api/keys/"+preview, admin, ""); r.status != 200 {
		t.Errorf("with a second admin: %d %s, want 200", r.status, r.body)
	}
}

func TestKeysThatAreBlockedOrBoundElsewhere(t *testing.T) {
	b := start(t, setup{})
	blocked, _ := b.key(`{"name":"blocked","role":"user","rate_limit":0}`)
	if r := b.do("POST", "/api/chat", blocked, `{"model":"tiny"}`); r.status != 403 {
		t.Errorf("rate_limit 0: %d %s, want 403", r.status, r.body)
	}
	none, _ := b.key(`{"name":"none","role":"user","models":[]}`)
	if r := b.do("POST", "/api/chat", none, `{"model":"tiny"}`); r.status != 404 {
		t.Errorf("no models: %d %s, want 404", r.status, r.body)
	}
	if r := b.do("GET", "/v1/models", none, ""); !strings.Contains(r.body, `"data":[]`) {
		t.Errorf("no models listed: %s, want %s in it", r.body, `"data":[]`)
	}
	here, _ := b.key(`{"name":"here","role":"user","allowed_ips":["127.0.0.1","::1"]}`)
	if r := b.do("GET", "/api/tags", here, ""); r.status != 200 {
		t.Errorf("from this address: got %d %s, want 200", r.status, r.body)
	}
}

func TestStatisticsForAdmins(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"worker","role":"user"}`)
	for range 3 {
		if r := b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`); r.status != 200 {
			t.Fatalf("got %d %s, want 200", r.status, r.body)
		}
	}
	b.do("POST", "/api/chat", key, `{"model":"unknown","stream":false}`)
	r := b.do("GET", "/api/admin/stats", adminSecret, "")
	of := r.json(t)["statistics"].(map[string]any)[preview].(map[string]any)
	if of["key_name"] != "worker" || of["role"] != "user" || of["total_requests"] != 4.0 || of["last_request"] == nil {
		t.Errorf("got the statistics %s, want 4 requests of the user worker", r.body)
	}
	if p := of["response_time_percentiles"].(map[string]any); p["p50"].(float64) <= 0 || p["p99"].(float64) < p["p50"].(float64) {
		t.Errorf("percentiles: %v", p)
	}
	own := b.stats(key)
	if e := own["requests_by_endpoint"].(map[string]any); e["/api/chat"] != 4.0 || own["average_response_time"].(float64) <= 0 {
		t.Errorf("own: %v, want %v, more than 0", own, 4.0)
	}
}

func TestServicePages(t *testing.T) {
	b := start(t, setup{})
	req, _ := http.NewRequest("GET", b.url+"/", nil)
	req.Header.Set("User-Agent", "ollama/0.6.5 (amd64 linux) Go/go1.24")
	req.Header.Set("Accept", "application/json")
	if r := b.send(req); r.body != "Ollama is running" {
		t.Errorf("root for ollama: %q, want %q", r.body, "Ollama is running")
	}
	req.Header.Set("User-Agent", "curl/8")
	if r := b.send(req); r.json(t)["service"] != "ollama-api-service" {
		t.Errorf("root: %q, want %q", r.body, "ollama-api-service")
	}
	if r := b.do("GET", "/api/version", "", ""); r.json(t)["version"] != "0.0.0" {
		t.Errorf("version: %s, want %q", r.body, "0.0.0")
	}
	plain := b.do("GET", "/health", "", "").json(t)
	if len(plain) != 3 || plain["ollama_backend"] != "healthy" {
		t.Errorf("health without a key: %v, want 3 of them, %q", plain, "healthy")
	}
	if v := b.do("GET", "/health", adminSecret, "").json(t); v["backends"] == nil || v["journal"] == nil {
		t.Errorf("health for an admin: %v", v)
	}
	doc := b.do("GET", "/openapi.json", "", "").json(t)
	paths := doc["paths"].(map[string]any)
	for _, line := range b.server.Table() {
		item, _ := paths[line.Template].(map[string]any)
		if item[strings.ToLower(line.Method)] == nil {
			t.Errorf("the OpenAPI document lacks %s %s", line.Method, line.Template)
		}
	}
}

// deadlines records the last read deadline of a connection.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.last = t
	return nil
}

// The read deadline of a body must not stay on the connection. When it passed, each later request on the connection was treated as one
// whose client had left.
func TestAChangeLeavesNoDeadlineBehind(t *testing.T) {
	b := start(t, setup{})
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest("POST", "/api/keys", strings.NewReader(`{"name":"one","role":"user"}`))
	r.Header.Set("Authorization", "Bearer "+adminSecret)
	b.server.ServeHTTP(w, r)
	if w.Code != http.StatusOK || !w.last.IsZero() {
		t.Errorf("got %d %s; a deadline in %v is still set, want none", w.Code, w.Body, time.Until(w.last))
	}
}

// An admin changes its own key. A change that would lock out its caller gets 409, unless force is set.
func TestAdminsDoNotBarThemselves(t *testing.T) {
	for _, static := range []bool{false, true} {
		b := start(t, setup{change: func(o *server.Options) { o.Live.StaticAdmin = static }})
		b.key(`{"name":"another","role":"admin"}`)
		hour, past := time.Now().Add(time.Hour).UTC().Format(time.RFC3339), time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
		for body, after := range map[string]int{
			`{"allowed_ips":["10.0.0.0/8"]}`:     403,
			`{"role":"user"}`:                    403,
			`{"expires_at":"` + past + `"}`:      401,
			`{"expires_at":"` + hour + `"}`:      200,
			`{"note":"x","allowed_ips":["::1"]}`: 403,
			`{"role":"user","name":"no admin"}`:  403,
		} {
			own, preview := b.key(`{"name":"own","role":"admin"}`)
			r := b.do("PATCH", "/api/keys/"+preview, own, body)
			if r.status != 409 || !strings.Contains(r.body, "force=true") {
				t.Errorf("%s: %d %s, want 409, %q in it", body, r.status, r.body, "force=true")
			}
			if r := b.do("GET", "/api/keys", own, ""); r.status != 200 {
				t.Fatalf("%s: the refused change locked out its caller: got %d, want 200", body, r.status)
			}
			if r := b.do("PATCH", "/api/keys/"+preview+"?force=true", own, body); r.status != 200 {
				t.Errorf("%s, forced: %d %s, want 200", body, r.status, r.body)
			}
			if r := b.do("GET", "/api/keys", own, ""); r.status != after {
				t.Errorf("%s, forced: afterwards %d, want %d", body, r.status, after)
			}
		}
		own, preview := b.key(`{"name":"own","role":"admin"}`)
		for _, body := range []string{
			`{"allowed_ips":["127.0.0.0/8"]}`, `{"allowed_ips":null}`, `{"allowed_ips":[]}`, `{"role":"admin"}`, `{"rate_limit":0}`,
			`{"expires_at":"` + time.Now().AddDate(0, 1, 0).UTC().Format(time.RFC3339) + `"}`, `{"expires_at":null}`,
		} {
			if r := b.do("PATCH", "/api/keys/"+preview, own, body); r.status != 200 {
				t.Errorf("%s locks no caller out: got %d %s, want 200", body, r.status, r.body)
			}
		}
		_, other := b.key(`{"name":"other","role":"admin"}`)
		if r := b.do("PATCH", "/api/keys/"+other, own, `{"role":"user","allowed_ips":["10.0.0.0/8"]}`); r.status != 200 {
			t.Errorf("another's key: %d %s, want 200", r.status, r.body)
		}
		if r := b.do("PATCH", "/api/keys/"+other, own, `{"expires_at":"`+past+`"}`); r.status != 400 {
			t.Errorf("another's key, expired already: %d %s, want 400", r.status, r.body)
		}
	}
}

// Only an admin key that works from any address counts as the last one.
func TestTheLastAdminWorksFromEverywhere(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Live.StaticAdmin = false }})
	own, preview := b.key(`{"name":"own","role":"admin"}`)
	b.key(`{"name":"bound","role":"admin","allowed_ips":["127.0.0.1"]}`)
	_, revoked := b.key(`{"name":"revoked","role":"admin"}`)
	b.do("DELETE", "/api/keys/"+revoked, own, "")
	for _, c := range []struct{ method, query, body string }{{"DELETE", "", ""}, {"PATCH", "?force=true", `{"role":"user"}`}, {"PATCH", "?force=true", `{"allowed_ips":["127.0.0.1"]}`}} {
		if r := b.do(c.method, "/api/keys/"+preview+c.query, own, c.body); r.status != http.StatusConflict || !strings.Contains(r.body, "allowed_ips") {
			t.Errorf("%s %s: %d %s, want %d, %q in it", c.method, c.body, r.status, r.body, http.StatusConflict, "allowed_ips")
		}
	}
	b.key(`{"name":"open","role":"admin"}`)
	if r := b.do("DELETE", "/api/keys/"+preview, own, ""); r.status != 200 {
		t.Errorf("with another admin key without allowed_ips: got %d %s, want 200", r.status, r.body)
	}
}
