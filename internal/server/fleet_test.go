package server_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/test/ollamatest"
)

const chatTiny = `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`

var requestCount atomic.Int64

// all returns the servers behind the gateway.
func (b *bed) all() []*ollamatest.Server { return append([]*ollamatest.Server{b.ollama}, b.others...) }

// models gives each server its models. The fake's digest depends on the name, except for a server that has only "tiny".
func (b *bed) models(lists ...[]string) {
	b.t.Helper()
	for i, s := range b.all() {
		s.Models(lists[i]...)
	}
	b.fleet.ProbeAll(b.t.Context())
}

// at sends a request that names a server in X-Backend.
func (b *bed) at(server, method, path, body string) reply {
	req := b.request(method, path, adminSecret, body)
	req.Header.Set("X-Request-Id", fmt.Sprint("r", requestCount.Add(1)))
	if server != "" {
		req.Header.Set("X-Backend", server)
	}
	return b.send(req)
}

func TestListsOfAFleet(t *testing.T) {
	b := start(t, setup{servers: 3})
	b.models([]string{"tiny:latest", "one:latest"}, []string{"tiny:latest", "two:latest"}, []string{"tiny:latest", "two:latest", "three:latest"})
	key, _ := b.key(`{"name":"some","role":"user","models":["tiny","two"]}`)
	check := func(key string, want string, paths ...string) {
		t.Helper()
		for _, path := range paths {
			r := b.do("GET", path, key, "")
			var names []string
			v := r.json(t)
			list, _ := v["models"].([]any)
			if list == nil {
				list, _ = v["data"].([]any)
			}
			for _, m := range list {
				name := m.(map[string]any)["name"]
				if name == nil {
					name = m.(map[string]any)["id"]
				}
				names = append(names, name.(string))
			}
			if got := strings.Join(names, " "); r.status != 200 || got != want {
				t.Errorf("%s: %d %s, want %s", path, r.status, got, want)
			}
		}
	}
	check(adminSecret, "tiny:latest one:latest two:latest three:latest", "/api/tags", "/api/models", "/v1/models")
	check(key, "tiny:latest two:latest", "/api/tags", "/api/models", "/v1/models")
	check(adminSecret, "tiny:latest", "/api/ps")
	for _, path := range []string{"/v1/models/three", "/v1/models/one"} {
		if r := b.do("GET", path, adminSecret, ""); r.status != 200 {
			t.Errorf("%s: %d %s, want 200", path, r.status, r.body)
		}
	}
	if r := b.do("GET", "/v1/models/four", adminSecret, ""); r.status != 404 {
		t.Errorf("a model that no server has: got %d %s, want 404", r.status, r.body)
	}
	// A question about a model goes to a server that has the model.
	before := len(b.others[1].RequestsTo("POST", "/api/show"))
	if r := b.do("POST", "/api/show", adminSecret, `{"model":"three"}`); r.status != 200 || len(b.others[1].RequestsTo("POST", "/api/show")) != before+1 {
		t.Errorf("show: %d %s, want 200, %v of them", r.status, r.body, before+1)
	}
	if r := b.do("POST", "/api/show", key, `{"model":"missing"}`); r.status != 404 || !strings.Contains(r.body, "model 'missing:latest' not found") {
		t.Errorf("show: %d %s, want 404, %q in it", r.status, r.body, "model 'missing:latest' not found")
	}
	// A server that fails, and one that is down, are left out.
	b.others[0].Script("GET", "/api/tags", ollamatest.Answer{Status: 500, Body: `{"error":"x"}`})
	b.others[0].Script("GET", "/v1/models", ollamatest.Answer{Body: `<html>`})
	b.others[1].Close()
	check(adminSecret, "tiny:latest one:latest", "/api/tags", "/v1/models")
}

func TestWhereARequestWent(t *testing.T) {
	b := start(t, setup{servers: 2})
	b.models([]string{"tiny:latest", "one:latest"}, []string{"tiny:latest", "two:latest"})
	key := b.user()
	for model, want := range map[string]string{"one": "gpu1", "two": "gpu2"} {
		for path, body := range map[string]string{
			"/api/chat": `{"model":%q,"messages":[{"role":"user","content":"x"}]}`, "/v1/chat/completions": `{"model":%q,"stream":true,"messages":[{"role":"user","content":"x"}]}`,
			"/api/embed": `{"model":%q,"input":"x"}`,
		} {
			r := b.do("POST", path, key, fmt.Sprintf(body, model))
			if r.status != 200 || r.header.Get("X-Backend") != want || r.header.Get("X-Queue-Wait-Ms") != "0" {
				t.Errorf("%s %s: %d %v, want 200, %v, %q", model, path, r.status, r.header, want, "0")
			}
		}
	}
	if r := b.do("POST", "/api/chat", key, strings.ReplaceAll(chatTiny, "tiny", "missing")); r.status != 404 || !strings.Contains(r.body, `"model 'missing:latest' not found"`) {
		t.Errorf("a model that no server has: got %d %s, want 404, %s in it", r.status, r.body, `"model 'missing:latest' not found"`)
	}
	// A model that was not pulled through the gateway is found at once.
	b.others[0].Models("tiny:latest", "two:latest", "brought:latest")
	b.fleet.Find(t.Context(), "brought:latest")
	b.fleet.ProbeAll(t.Context())
	if r := b.do("POST", "/api/chat", key, strings.ReplaceAll(chatTiny, "tiny", "brought")); r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
		t.Errorf("got %d %s, want 200 from gpu2", r.status, r.body)
	}
}

// If one name has two contents, only the servers with the majority's content are used, and admins see a warning.
func TestTheDigestOfMost(t *testing.T) {
	b := start(t, setup{servers: 3})
	b.models([]string{"tiny:latest"}, []string{"tiny:latest", "x:latest"}, []string{"tiny:latest", "y:latest"})
	key := b.user()
	for range 20 {
		if r := b.do("POST", "/api/chat", key, chatTiny); r.status != 200 || r.header.Get("X-Backend") == "gpu1" {
			t.Fatalf("%d from %s, want 200, not %q", r.status, r.header.Get("X-Backend"), "gpu1")
		}
	}
	v := b.do("GET", "/health", adminSecret, "").body
	if !strings.Contains(v, "its tiny:latest differs from that of most servers") {
		t.Error(v)
	}
}

func TestAServerThatIsTooOld(t *testing.T) {
	b := start(t, setup{servers: 2})
	b.ollama.Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"0.6.5"}`})
	b.others[0].Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"0.24.0"}`})
	b.fleet.ProbeAll(t.Context())
	key := b.user()
	for range 10 {
		r := b.do("POST", "/v1/responses", key, `{"model":"tiny","input":"x"}`)
		if r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
			t.Fatalf("%d from %s: %s, want 200, %q", r.status, r.header.Get("X-Backend"), r.body, "gpu2")
		}
	}
	if n := len(b.ollama.RequestsTo("POST", "/v1/responses")); n != 0 {
		t.Errorf("the old server got %d requests, want none", n)
	}
	if v := b.do("GET", "/api/version", "", "").json(t)["version"]; v != "0.6.5" {
		t.Errorf("the version of all is %v, want %q", v, "0.6.5")
	}
	if v := b.do("GET", "/health", adminSecret, "").body; !strings.Contains(v, "CVE-2026-7482") {
		t.Errorf("no warning of an old version: %s, want %q in it", v, "CVE-2026-7482")
	}
	b.others[0].Script("GET", "/api/version", ollamatest.Answer{Body: `{"version":"0.12.0"}`})
	b.fleet.ProbeAll(t.Context())
	if r := b.do("POST", "/v1/responses", key, `{"model":"tiny","input":"x"}`); r.status != 501 || !strings.Contains(r.body, "0.12.0") {
		t.Errorf("got %d %s, want 501 with 0.12.0", r.status, r.body)
	}
}

// A request that fails before the first byte is served once by another server, which is in its row.
func TestFailover(t *testing.T) {
	busy := ollamatest.Answer{Status: 503, Body: `{"error":"server busy, please try again.  maximum pending requests exceeded"}`}
	dead := ollamatest.Answer{Body: "{}", Fault: ollamatest.Reset}
	for name, bad := range map[string]ollamatest.Answer{"busy": busy, "dies": dead} {
		t.Run(name, func(t *testing.T) {
			b := start(t, setup{servers: 2, change: func(o *server.Options) { o.PerAddress = 0 }})
			key, preview := b.key(`{"name":"k","role":"user","rate_limit":null}`)
			b.ollama.Script("POST", "/api/chat", bad)
			moved := 0
			for i := range 8 {
				b.fleet.ProbeAll(t.Context()) // the failing server is healthy again
				before := len(b.ollama.RequestsTo("POST", "/api/chat"))
				req := b.request("POST", "/api/chat", key, chatTiny)
				req.Header.Set("X-Request-Id", fmt.Sprint("r", i))
				r := b.send(req)
				if r.status != 200 || !strings.Contains(r.body, `"done":true`) || r.header.Get("X-Backend") != "gpu2" {
					t.Fatalf("got %d %v %s, want 200 with \"done\":true from gpu2", r.status, r.header, r.body)
				}
				moved += len(b.ollama.RequestsTo("POST", "/api/chat")) - before
			}
			if n := len(b.others[0].RequestsTo("POST", "/api/chat")); n != 8 || moved == 0 {
				t.Errorf("got %d answers for 8 requests, %d of them moved, want 8, not 0", n, moved)
			}
			if m := b.metrics()[`ollama_api_failovers_total{backend="gpu1"}`]; m != float64(moved) {
				t.Errorf("got %v failovers, want %d", m, moved)
			}
			for id, r := range b.rows(8) {
				compare(t, fmt.Sprintf("%s: %+v", id, r),
					fact{"r.Backend", r.Backend, "gpu2"},
					fact{"r.Outcome", r.Outcome, api.OutcomeOK},
					fact{"r.Key", r.Key, preview},
					fact{"r.Slot <= 0", r.Slot <= 0, false},
					fact{"r.CompletionTokens == 0", r.CompletionTokens == 0, false},
				)
			}
			if s := b.sched.Snapshot(); s.InFlight != 0 || s.Waiting != 0 {
				t.Errorf("slots are still taken: %+v, want 0, 0", s)
			}
		})
	}
}

// A request gets at most two tries, and none after a byte of an answer. Changes of models are sent once.
func TestNoFailover(t *testing.T) {
	b := start(t, setup{servers: 3})
	key := b.user()
	count := func(path string) (n int) {
		for _, s := range b.all() {
			n += len(s.RequestsTo("POST", path))
		}
		return n
	}
	for _, s := range b.all() {
		s.Script("POST", "/api/chat", ollamatest.Answer{Body: "{}", Fault: ollamatest.Reset})
		s.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 5, Fault: ollamatest.Reset, FaultAt: ollamatest.AfterHeader})
		s.Script("POST", "/api/embed", ollamatest.Answer{Raw: "HTTP/1.1 200 O", Fault: ollamatest.Reset, FaultAt: ollamatest.AtEnd})
		s.Script("POST", "/api/copy", ollamatest.Answer{Body: "{}", Fault: ollamatest.Reset})
	}
	if r := b.do("POST", "/api/chat", key, chatTiny); r.status != 502 || count("/api/chat") != 2 {
		t.Errorf("chat: %d after %d tries: %s, want 502, 2", r.status, count("/api/chat"), r.body)
	}
	b.fleet.ProbeAll(t.Context())
	if r := b.do("POST", "/api/generate", key, `{"model":"tiny","prompt":"x"}`); r.status != 502 && r.err == nil || count("/api/generate") != 1 {
		t.Errorf("generate: %d %v after %d tries: %s", r.status, r.err, count("/api/generate"), r.body)
	}
	b.fleet.ProbeAll(t.Context())
	if r := b.do("POST", "/api/embed", key, `{"model":"tiny","input":"x"}`); r.status != 502 || count("/api/embed") != 1 {
		t.Errorf("embed: %d after %d tries: %s, want 502, 1", r.status, count("/api/embed"), r.body)
	}
	if r := b.at("gpu2", "POST", "/api/copy", `{"source":"tiny","destination":"other"}`); r.status != 502 || count("/api/copy") != 1 {
		t.Errorf("copy: %d after %d tries: %s, want 502, 1", r.status, count("/api/copy"), r.body)
	}
}

// A server goes down and up again under many requests. No request without a begun answer fails, and each gets one answer.
func TestFailoverUnderLoad(t *testing.T) {
	const requests = 300
	b := start(t, setup{servers: 3, slots: 2})
	key, _ := b.key(`{"name":"k","role":"user","rate_limit":null}`)
	b.ollama.Handle("POST", "/api/chat", func(r *ollamatest.Request) ollamatest.Answer {
		if r.Conn%2 == 0 {
			return ollamatest.Answer{Body: "{}", Fault: ollamatest.Reset}
		}
		return ollamatest.Answer{Tokens: 3, CloseAfter: true}
	})
	failed := make(chan string, requests)
	turns := make(chan int, requests)
	for i := range requests {
		turns <- i
	}
	close(turns)
	var running sync.WaitGroup
	for range 12 {
		running.Go(func() {
			for i := range turns {
				if i%10 == 0 {
					b.fleet.Probe(t.Context(), b.backend)
				}
				req := b.request("POST", "/api/chat", key, chatTiny)
				req.Header.Set("X-Request-Id", fmt.Sprint("r", i))
				resp, err := b.client.Do(req)
				if err != nil {
					failed <- err.Error()
					continue
				}
				if resp.StatusCode != 200 {
					failed <- fmt.Sprint(resp.StatusCode)
				}
				resp.Body.Close()
			}
		})
	}
	running.Wait()
	close(failed)
	for f := range failed {
		t.Error(f)
	}
	rows, at := b.rows(requests), map[string]int{}
	for _, r := range rows {
		at[r.Backend]++
	}
	if len(rows) != requests || at["gpu2"] == 0 || at["gpu3"] == 0 {
		t.Errorf("%d rows, at %v, want %v of them, not 0, not 0", len(rows), at, requests)
	}
}

func TestAllServersDown(t *testing.T) {
	b := start(t, setup{servers: 2})
	key := b.user()
	for _, s := range b.all() {
		s.Close()
	}
	b.fleet.ProbeAll(t.Context())
	for _, path := range []string{"/api/chat", "/v1/chat/completions"} {
		if r := b.do("POST", path, key, chatTiny); r.status != 503 || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v, want 503, a text", path, r.status, r.header)
		}
	}
	for path, want := range map[string]int{"/readyz": 503, "/healthz": 200, "/health": 200, "/api/tags": 503, "/api/version": 200} {
		if r := b.do("GET", path, key, ""); r.status != want {
			t.Errorf("%s: %d, want %v", path, r.status, want)
		}
	}
	if v := b.do("GET", "/health", "", "").json(t); v["ollama_backend"] != "unreachable" || v["status"] != "degraded" {
		t.Errorf("got the health %v, want it degraded with ollama_backend unreachable", v)
	}
	left := b.stats(key)["limits"]
	if !strings.Contains(fmt.Sprint(left), "0") {
		t.Errorf("got the limits %v, want no request counted", left)
	}
}

func TestBackendsAtRunTime(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) {
		o.Static = map[string]bool{"gpu1": true}
		o.Means = dial.Means{Header: "X-Upstream", Value: "secret"}
	}})
	key := b.user()
	extra := ollamatest.Start(t)
	refuse := func(want int, method, path, body, says string) {
		t.Helper()
		if r := b.do(method, path, adminSecret, body); r.status != want || !strings.Contains(r.body, says) {
			t.Errorf("%s %s %s: got %d %s, want %d with %q", method, path, body, r.status, r.body, want, says)
		}
	}
	const list = "/api/admin/backends"
	refuse(400, "POST", list, `{"name":"x","url":"http://169.254.169.254"}`, "metadata")
	refuse(400, "POST", list, `{"name":"x","url":"http://u:p@h"}`, "must not contain a user")
	refuse(400, "POST", list, `{"name":"x","url":"http://h?slots=4"}`, "separate fields")
	refuse(400, "POST", list, `{"name":"a b","url":"http://h"}`, "name")
	refuse(400, "POST", list, `{"name":"x","url":"http://h","slots":-1}`, "slots")
	refuse(400, "POST", list, `{"name":"x","url":"http://h","Name":"y"}`, "")
	refuse(409, "POST", list, `{"name":"gpu1","url":"http://h"}`, "already")
	refuse(409, "POST", list, fmt.Sprintf(`{"name":"x","url":%q}`, b.ollama.URL), "gpu1 already has this address")
	refuse(409, "PATCH", list+"/gpu1", `{"slots":4}`, "OLLAMA_BASE_URL")
	refuse(409, "DELETE", list+"/gpu1", "", "OLLAMA_BASE_URL")
	refuse(404, "PATCH", list+"/gpu9", `{"drain":true}`, "no backend")
	refuse(404, "DELETE", list+"/a%20b", "", "no backend")
	if r := b.do("GET", list, key, ""); r.status != 403 {
		t.Errorf("a user's key: got %d, want 403", r.status)
	}

	r := b.do("POST", list, adminSecret, fmt.Sprintf(`{"name":"gpu2","url":%q,"slots":3,"weight":2}`, extra.URL))
	v := r.json(t)
	if r.status != 200 || v["healthy"] != true || v["static"] != false || v["slots"] != 3.0 || v["weight"] != 2.0 || v["models_installed"] != 1.0 {
		t.Fatalf("got %d %s, want 200", r.status, r.body)
	}
	// While the first server is drained, the second one serves everything.
	if r := b.do("PATCH", list+"/gpu1", adminSecret, `{"drain":true}`); r.status != 200 || r.json(t)["draining"] != true {
		t.Fatalf("got %d %s, want 200", r.status, r.body)
	}
	for range 5 {
		if r := b.do("POST", "/api/chat", key, chatTiny); r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
			t.Fatalf("%d from %s: %s, want 200, %q", r.status, r.header.Get("X-Backend"), r.body, "gpu2")
		}
	}
	if sent := extra.RequestsTo("POST", "/api/chat"); len(sent) != 5 || sent[0].Header.Get("X-Upstream") != "secret" {
		t.Errorf("%d requests, want 5 of them, %q", len(sent), "secret")
	}
	if r := b.do("PATCH", list+"/gpu2", adminSecret, `{"slots":0,"total":7}`); r.status != 200 || r.json(t)["total"] != 7.0 || r.json(t)["slots"] != 0.0 || b.fleet.Named("gpu2").Bounds() != (backend.Bounds{Total: 7, Weight: 2}) {
		t.Errorf("got %d %s, want 200", r.status, r.body)
	}
	kept, err := b.store.Backends(t.Context())
	if err != nil || len(kept) != 2 || kept[1].Name != "gpu2" && kept[0].Name != "gpu2" || !slices.ContainsFunc(kept, func(k api.Backend) bool { return k.Name == "gpu1" && k.URL == nil && k.Draining }) {
		t.Errorf("%v, kept is %+v", err, kept)
	}
	b.do("PATCH", list+"/gpu1", adminSecret, `{"drain":false}`)
	if r := b.do("DELETE", list+"/gpu2", adminSecret, ""); r.status != 200 {
		t.Errorf("got %d %s, want 200", r.status, r.body)
	}
	if r := b.do("POST", "/api/chat", key, chatTiny); r.status != 200 || r.header.Get("X-Backend") != "gpu1" {
		t.Errorf("%d from %s, want 200, %q", r.status, r.header.Get("X-Backend"), "gpu1")
	}
	log, _, err := b.store.Audit(t.Context(), store.AuditQuery{Limit: 10})
	var actions []string
	for _, e := range log {
		if strings.HasPrefix(e.Action, "backend.") {
			actions = append(actions, e.Action+" "+e.Target+" by "+e.Actor)
		}
	}
	if got := strings.Join(actions, ", "); err != nil || got != "backend.remove gpu2 by env-admin, backend.change gpu1 by env-admin, backend.change gpu2 by env-admin, backend.change gpu1 by env-admin, backend.add gpu2 by env-admin" {
		t.Errorf("%v: %s, want %q", err, got, "backend.remove gpu2 by env-admin, backend.change gpu1 by env-admin, backend.change gpu2 by env-admin, backend.change gpu1 by env-admin, backend.add gpu2 by env-admin")
	}
}

// If a model is not in memory, the gateway loads it with its own request. The load has the options of the waiting request, and continues if
// the client leaves.
func TestAModelIsLoadedBeforeItIsUsed(t *testing.T) {
	b := start(t, setup{})
	b.ollama.Script("GET", "/api/ps", ollamatest.Answer{Body: `{"models":[]}`})
	b.ollama.Models("tiny:latest", "other:latest")
	b.fleet.ProbeAll(t.Context())
	b.ollama.Handle("POST", "/api/generate", func(*ollamatest.Request) ollamatest.Answer {
		b.ollama.Script("GET", "/api/ps")
		return ollamatest.Answer{Body: `{"model":"tiny:latest","done":true,"done_reason":"load"}`}
	})
	r := b.do("POST", "/api/chat", b.user(), `{"model":"tiny","messages":[{"role":"user","content":"x"}],"options":{"num_ctx":1024,"seed":1}}`)
	sent := b.ollama.RequestsTo("POST", "/api/generate")
	if r.status != 200 || len(sent) != 1 || string(sent[0].Body) != `{"model":"tiny:latest","options":{"num_ctx":1024}}` {
		t.Fatalf("%d after %d loads, want 200, 1 of them, %s", r.status, len(sent), `{"model":"tiny:latest","options":{"num_ctx":1024}}`)
	}
	const again = `{"model":"tiny","messages":[{"role":"user","content":"y"}],"options":{"num_ctx":1024}}`
	if r := b.do("POST", "/api/chat", adminSecret, again); r.status != 200 || len(b.ollama.RequestsTo("POST", "/api/generate")) != 1 {
		t.Errorf("%d: a loaded model was loaded again, want 200, 1 of them", r.status)
	}
	// Ollama loads the model again for other options. This counts as a change like any other.
	r = b.do("POST", "/api/chat", adminSecret, chatTiny)
	sent = b.ollama.RequestsTo("POST", "/api/generate")
	if e := b.explain(r.header.Get("X-Request-Id")); r.status != 200 || len(sent) != 2 || string(sent[1].Body) != `{"model":"tiny:latest"}` || e.Tries[0].Why != "change" {
		t.Errorf("%d after %d loads, because %+v: want a change to the model's own options", r.status, len(sent), e.Tries)
	}
}
