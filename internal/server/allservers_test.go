package server_test

import (
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/test/ollamatest"
)

func TestChangesNeedAServer(t *testing.T) {
	b := start(t, setup{servers: 2})
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/api/pull", `{"model":"x"}`},
		{"POST", "/api/push", `{"model":"a/x"}`},
		{"POST", "/api/create", `{"model":"x","from":"tiny"}`},
		{"POST", "/api/copy", `{"source":"tiny","destination":"x"}`},
		{"DELETE", "/api/delete", `{"model":"x"}`},
		{"POST", "/api/blobs/" + digest, "x"},
		{"HEAD", "/api/blobs/" + digest, ""},
	} {
		several := c.path == "/api/pull" || c.path == "/api/copy" || c.path == "/api/delete"
		for _, name := range []string{"", "gpu9", "*"} {
			if name == "*" && several {
				continue
			}
			r := b.at(name, c.method, c.path, c.body)
			if r.status != 400 || c.method != "HEAD" && (!strings.Contains(r.body, "gpu1, gpu2") || strings.Contains(r.body, "* for all") != several) {
				t.Errorf("%s for %q: %d %s", c.path, name, r.status, r.body)
			}
		}
		before, other := len(b.others[0].RequestsTo(c.method, c.path)), len(b.ollama.RequestsTo(c.method, c.path))
		b.at("gpu2", c.method, c.path, c.body)
		if len(b.others[0].RequestsTo(c.method, c.path)) != before+1 || len(b.ollama.RequestsTo(c.method, c.path)) != other {
			t.Errorf("%s did not go to the server that X-Backend names, want %v of them, %v of them", c.path, before+1, other)
		}
	}
}

// A model that was pulled through the gateway can be used as soon as the pull is done.
func TestListsAreReadAfterAChange(t *testing.T) {
	b := start(t, setup{servers: 2})
	key := b.user()
	b.others[0].Handle("POST", "/api/pull", func(*ollamatest.Request) ollamatest.Answer {
		b.others[0].Models("tiny:latest", "new:latest")
		return ollamatest.Answer{Chunks: []string{`{"status":"success"}` + "\n"}, Header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	})
	chatNew := strings.ReplaceAll(chatTiny, "tiny", "new")
	if r := b.do("POST", "/api/chat", key, chatNew); r.status != 404 {
		t.Fatalf("got %d %s, want 404", r.status, r.body)
	}
	if r := b.at("gpu2", "POST", "/api/pull", `{"model":"new"}`); r.status != 200 || r.body != `{"status":"success"}`+"\n" || r.header.Get("X-Backend") != "gpu2" {
		t.Fatalf("got %d %s, want 200 from gpu2", r.status, r.body)
	}
	if r := b.do("POST", "/api/chat", key, chatNew); r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
		t.Errorf("got %d %s, want 200 from gpu2", r.status, r.body)
	}
}

func TestChangesOnAllServers(t *testing.T) {
	b := start(t, setup{servers: 3})
	lines := func(text string) ollamatest.Answer {
		return ollamatest.Answer{Chunks: []string{text}, Header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	}
	good := lines(`{"status":"pulling manifest"}` + "\n" + `{"status":"pulling abc","digest":"sha256:abc","total":10,"completed":5}` + "\n" + `{"status":"success"}` + "\n")
	for _, s := range b.all() {
		s.Script("POST", "/api/pull", good)
	}
	r := b.at("*", "POST", "/api/pull", `{"model":"x"}`)
	got := strings.Split(strings.TrimSpace(r.body), "\n")
	if r.status != 200 || len(got) != 10 || r.header.Get("X-Backend") != "*" ||
		got[1] != `{"status":"pulling abc","digest":"sha256:abc","total":10,"completed":5,"backend":"gpu1"}` ||
		got[2] != `{"status":"gpu1: success","backend":"gpu1"}` || got[5] != `{"status":"gpu2: success","backend":"gpu2"}` ||
		got[9] != `{"backends":{"gpu1":{"status":200},"gpu2":{"status":200},"gpu3":{"status":200}},"status":"success"}` {
		t.Errorf("%d %v\n%s", r.status, r.header, r.body)
	}
	// If one server fails, the others are still changed, and the last record reports the failure as Ollama would.
	b.others[0].Script("POST", "/api/pull", lines(`{"status":"pulling manifest"}`+"\n"+`{"error":"pull model manifest: file does not exist"}`+"\n"))
	r = b.at("*", "POST", "/api/pull", `{"model":"x"}`)
	got = strings.Split(strings.TrimSpace(r.body), "\n")
	last := got[len(got)-1]
	if r.status != 200 || strings.Count(r.body, `"error":"gpu2:`) != 1 || !strings.Contains(last, `"error":"gpu2: pull model manifest: file does not exist"`) ||
		!strings.Contains(last, `"gpu3":{"status":200}`) || strings.Contains(r.body, `"status":"success"`) {
		t.Errorf("got %d %s, want 200", r.status, r.body)
	}
	// The answer to a copy or a deletion is one object.
	r = b.at("*", "POST", "/api/copy", `{"source":"tiny","destination":"x"}`)
	if r.status != 207 || r.json(t)["status"] != "success" {
		t.Errorf("copy: %d %s, want 207, %q", r.status, r.body, "success")
	}
	b.others[1].Script("DELETE", "/api/delete", ollamatest.Answer{Status: 404, Body: `{"error":"model 'x' not found"}`})
	r = b.at("*", "DELETE", "/api/delete", `{"model":"tiny"}`)
	if r.status != 207 || !strings.Contains(r.body, `"gpu3":{"status":404,"error":"model 'x' not found"}`) {
		t.Errorf("delete: %d %s, want 207, %s in it", r.status, r.body, `"gpu3":{"status":404,"error":"model 'x' not found"}`)
	}
	for _, s := range b.all() {
		s.Script("DELETE", "/api/delete", ollamatest.Answer{Status: 404, Body: `{"error":"model 'x' not found"}`})
	}
	r = b.at("*", "DELETE", "/api/delete", `{"model":"tiny"}`)
	if r.status != 404 || r.json(t)["error"] != "gpu1: model 'x' not found" {
		t.Errorf("delete: %d %s, want 404, %q", r.status, r.body, "gpu1: model 'x' not found")
	}
	// Each change counts as one request of its key, and has one row.
	outcomes := map[api.Outcome]int{}
	for _, row := range b.rows(5) {
		if row.Backend != "*" {
			t.Errorf("got a row for the backend %q, want *", row.Backend)
		}
		outcomes[row.Outcome]++
	}
	if outcomes[api.OutcomeOK] != 3 || outcomes[api.OutcomeUpstream] != 1 || outcomes[api.OutcomeRefused] != 1 {
		t.Errorf("got the outcomes %v, want 3 ok, 1 upstream and 1 refused", outcomes)
	}
}
