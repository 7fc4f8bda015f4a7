package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/test/ollamatest"
)

// invented are requests for models that do not exist, in every dialect, streamed and not.
func invented(n int) (path, body string) {
	bodies := []struct{ path, body string }{
		{"/api/chat", `{"model":"made-up-%d","messages":[],"stream":false}`},
		{"/api/chat", `{"model":"made-up-%d:tag-%[1]d"}`},
		{"/api/generate", `{"model":"someone-%d/model","prompt":"x"}`},
		{"/api/embed", `{"model":"hub-%d.example/a/b:c","input":"x"}`},
		{"/v1/chat/completions", `{"model":"gpt-%d","messages":[{"role":"user","content":"x"}],"stream":true}`},
		{"/v1/messages", `{"model":"claude-%d","max_tokens":5,"messages":[{"role":"user","content":"x"}]}`},
		{"/v1/chat/completions", `{"model":"any-%d","messages":[{"role":"user","content":"x"}]}`}, // an alias of a model that does not exist
	}
	b := bodies[n%len(bodies)]
	return b.path, fmt.Sprintf(b.body, n)
}

// Names that clients make up share one name in the books, in statistics and in metrics, whether the server answers that it lacks the model
// or cannot be reached. The row has the requested name.
func TestNamesThatClientsMakeUp(t *testing.T) {
	for _, down := range []bool{false, true} {
		b := start(t, setup{change: func(o *server.Options) {
			alias, err := api.ParseAlias("any-*=not-there")
			if err != nil {
				t.Fatal(err)
			}
			o.Live.Aliases = api.Aliases{alias}
		}})
		key, _ := b.key(`{"name":"inventor","role":"user","rate_limit":null}`)
		if r := b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`); r.status != 200 {
			t.Fatalf("got %d %s, want 200", r.status, r.body)
		}
		if down {
			b.ollama.Close()
			b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`)
		}
		const names = 70
		for n := range names {
			path, body := invented(n)
			r := b.do("POST", path, key, body)
			if r.status < 400 {
				t.Fatalf("%s %s: %d %s, want at least 400", path, body, r.status, r.body)
			}
		}
		byModel := b.stats(key)["requests_by_model"].(map[string]any)
		if len(byModel) > 2 || byModel["tiny:latest"] == nil || !down && byModel[api.UnknownModel] != float64(names) {
			t.Errorf("down %v: requests_by_model has %d names: %.300v", down, len(byModel), byModel)
		}
		if r := b.do("GET", "/api/admin/usage?group_by=model", adminSecret, ""); r.json(t)["groups"].(float64) > 2 {
			t.Errorf("down %v: groups: %.300s, want at most 2", down, r.body)
		}
		if text := b.do("GET", "/metrics", adminSecret, "").body; strings.Contains(text, "made-up") || strings.Contains(text, "gpt-") {
			t.Errorf("down %v: an invented name is a label, want no %q, no %q", down, "made-up", "gpt-")
		}
		if down {
			continue
		}
		rows := b.do("GET", "/api/admin/requests?model=(unknown)&limit=1000", adminSecret, "").json(t)["requests"].([]any)
		asked := map[string]bool{}
		for _, row := range rows {
			asked[row.(map[string]any)["alias"].(string)] = true
		}
		if len(rows) != names || !asked["made-up-0:latest"] || !asked["hub-3.example/a/b:c"] || !asked["any-6"] {
			t.Errorf("%d rows, of %.300v", len(rows), asked)
		}
	}
}

// A model that is new on a server, or that runs without being listed, has its own name once it has run.
func TestAModelThatRunsHasItsName(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	b.ollama.Models("tiny:latest", "new:latest") // not through the gateway
	if r := b.do("POST", "/api/chat", key, `{"model":"new","stream":false}`); r.status != 200 {
		t.Fatalf("got %d %s, want 200", r.status, r.body)
	}
	b.ollama.Models("tiny:latest")
	b.fleet.ProbeAll(t.Context())
	b.do("POST", "/api/chat", key, `{"model":"new","stream":false}`)
	if got := b.stats(key)["requests_by_model"].(map[string]any); got["new:latest"] == nil {
		t.Errorf("requests_by_model is %v", got)
	}
}

// If a server answers for every name, the number of these names in the books is bounded.
func TestAServerThatAnswersForEveryName(t *testing.T) {
	b := start(t, setup{})
	key, _ := b.key(`{"name":"inventor","role":"user","rate_limit":null}`)
	for n := range 130 {
		b.spend(key, fmt.Sprintf("made-up-%d", n), 1)
	}
	b.spend(key, "tiny", 1)
	got := b.stats(key)["requests_by_model"].(map[string]any)
	if len(got) != 102 || got[api.UnknownModel] != 30.0 || got["made-up-0:latest"] != 1.0 || got["tiny:latest"] != 1.0 {
		t.Errorf("%d names: %.300v, want 102 of them, %v, %v, %v", len(got), got, 30.0, 1.0, 1.0)
	}
}

// Models that are pulled through the gateway are listed, so they do not count towards the bound on unlisted names.
func TestPulledModelsLeaveRoomForNames(t *testing.T) {
	b := start(t, setup{})
	models := []string{"tiny:latest"}
	b.ollama.Handle("POST", "/api/pull", func(r *ollamatest.Request) ollamatest.Answer {
		models = append(models, fmt.Sprintf("pulled-%d:latest", len(models)))
		b.ollama.Models(models...)
		return ollamatest.Answer{Chunks: []string{`{"status":"success"}` + "\n"}, Header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	})
	for n := range 105 {
		if r := b.do("POST", "/api/pull", adminSecret, fmt.Sprintf(`{"model":"pulled-%d"}`, n+1)); r.status != 200 {
			t.Fatalf("got %d %s, want 200", r.status, r.body)
		}
	}
	key := b.user()
	b.spend(key, "unlisted", 1)
	if got := b.stats(key)["requests_by_model"].(map[string]any); got["unlisted:latest"] != 1.0 {
		t.Errorf("requests_by_model after 105 pulls is %v, want unlisted:latest to have its name", got)
	}
	rows := b.do("GET", "/api/admin/requests?model=pulled-105", adminSecret, "").json(t)["requests"].([]any)
	if len(rows) != 1 || rows[0].(map[string]any)["alias"] != "" {
		t.Errorf("the row of a pull: %v, want one with the model's own name and without an alias", rows)
	}
}

// An IPv6 client has 2⁶⁴ addresses. All of them share one counter of refusals.
func TestRefusalsOfOneNetworkAreOneCounter(t *testing.T) {
	b := start(t, setup{})
	who := map[string]bool{}
	for n := range 100 {
		r := httptest.NewRequest("GET", "/api/tags", nil)
		r.RemoteAddr = fmt.Sprintf("[2001:db8:1:2::%x]:4711", n)
		who[b.server.WhoIsRefused(httptest.NewRecorder(), r)] = true
	}
	r := httptest.NewRequest("GET", "/api/tags", nil)
	r.RemoteAddr = "192.0.2.7:4711"
	who[b.server.WhoIsRefused(httptest.NewRecorder(), r)] = true
	if len(who) != 2 || !who["2001:db8:1:2::/64"] || !who["192.0.2.7"] {
		t.Errorf("counted as %v", who)
	}
}

// /health shows admins, and only admins, that retention is waiting.
func TestHealthSaysThatRetentionWaits(t *testing.T) {
	b := start(t, setup{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	old := api.Record{Admission: api.Admission{ID: "old", At: time.Now().Add(-20 * 24 * time.Hour), Key: "oas_8rT2kLmN0q"}, Outcome: api.OutcomeOK}
	if _, err := b.store.AddRecords(ctx, []api.Record{old}); err != nil {
		t.Fatal(err)
	}
	go func() {
		b.store.Trim(ctx, store.Retention{Rows: 30 * 24 * time.Hour}, time.Now, slog.New(slog.DiscardHandler))
		close(ended)
	}()
	b.until("a wait", func() bool { return b.store.TrimWaits() != nil })
	stop()
	<-ended
	waits, _ := b.do("GET", "/health", adminSecret, "").json(t)["retention_waits"].(map[string]any)
	if reason, _ := waits["reason"].(string); !strings.Contains(reason, "20.0 days old") || waits["until"] == nil {
		t.Errorf("an admin reads %v", waits)
	}
	if r := b.do("GET", "/health", "", ""); strings.Contains(r.body, "retention") {
		t.Errorf("without an admin key, got %s, want no %q", r.body, "retention")
	}
}
