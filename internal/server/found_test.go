package server_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/test/ollamatest"
)

// A model that Ollama has thrown out, though /api/ps said that it was loaded: the first request that was sent into the load has it on its row
// and pays for it, and the others of that time do not.
func TestALoadThatIsFoundIsBooked(t *testing.T) {
	b := start(t, setup{slots: 4})
	gate := make(chan struct{})
	const ps = `{"models":[{"name":"other:latest","model":"other:latest"}`
	b.ollama.Script("GET", "/api/ps", ollamatest.Answer{Body: ps + `]}`})
	b.ollama.Handle("POST", "/api/generate", func(r *ollamatest.Request) ollamatest.Answer {
		var ask struct{ Model, Prompt string }
		_ = json.Unmarshal(r.Body, &ask)
		if ask.Prompt == "" { // the gateway's own load, by which it knows how short loads are
			b.ollama.Script("GET", "/api/ps", ollamatest.Answer{Body: ps + `,{"name":"tiny:latest","model":"tiny:latest"}]}`})
			return ollamatest.Answer{Body: `{"model":"x","done":true,"done_reason":"load"}`}
		}
		if ask.Prompt == "first" {
			return ollamatest.Answer{Tokens: 1}
		}
		load := "60000000000" // longer than the request is there: it counts for as long as that
		if ask.Model == "other" {
			load = "1000"
		}
		return ollamatest.Answer{HeaderGate: gate, Body: `{"model":"x","response":"y","done":true,"total_duration":60000002000,"load_duration":` + load +
			`,"prompt_eval_count":3,"prompt_eval_duration":1000,"eval_count":1,"eval_duration":1000}`}
	})
	b.models([]string{"tiny:latest", "other:latest"})
	if r := b.do("POST", "/api/generate", b.user(), `{"model":"tiny","prompt":"first","stream":false}`); r.status != 200 {
		t.Fatalf("%d %s, want 200", r.status, r.body)
	}
	names := []string{"causes", "waits", "runs"}
	previews := map[string]string{}
	var answers []func() reply
	for i, name := range names {
		key, preview := b.key(`{"name":"` + name + `","role":"user"}`)
		previews[preview] = name
		body := generateTiny
		if name == "runs" {
			body = `{"model":"other","prompt":"x","stream":false}`
		}
		answers = append(answers, b.begin("/api/generate", key, body))
		b.ollama.WaitRequestTo(i+3, "POST", "/api/generate")
	}
	for began := time.Now(); time.Since(began) < 150*time.Millisecond; { // what is shorter is no load
		b.do("GET", "/api/version", adminSecret, "")
	}
	close(gate)
	for _, answer := range answers {
		if r := answer(); r.status != 200 {
			t.Fatalf("%d %s, want 200", r.status, r.body)
		}
	}
	rows := map[string]api.Record{}
	b.until("three rows", func() bool {
		list, _, err := b.store.Requests(t.Context(), store.RequestQuery{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			rows[previews[r.Key]] = r
		}
		return len(list) == len(names)+1
	})
	causes, waits, runs := rows["causes"], rows["waits"], rows["runs"]
	if causes.Loading <= 0 || waits.Loading != 0 || runs.Loading != 0 {
		t.Errorf("loading: the cause %v, the one that waited %v, another model's %v; want only the cause's", causes.Loading, waits.Loading, runs.Loading)
	}
	if waits.GPU > waits.Slot/8 || runs.GPU < runs.Slot/8 || causes.GPU < causes.Slot/3 {
		t.Errorf("gpu of slot: the cause %v of %v, the one that waited %v of %v, another model's %v of %v; want about two thirds, nothing, a third",
			causes.GPU, causes.Slot, waits.GPU, waits.Slot, runs.GPU, runs.Slot)
	}
	e := b.explain(causes.ID)
	if *e.LoadMS <= 0 || !strings.Contains(strings.Join(e.Explained, " "), "Ollama had unloaded the model in the meantime, and loaded it again in ") {
		t.Errorf("explained %+v, want more than 0, %q in it", e, "Ollama had unloaded the model in the meantime, and loaded it again in ")
	}
	if got := b.metrics()[`ollama_api_model_changes_total{backend="gpu1",result="found"}`]; got != 1 {
		t.Errorf("%v loads were found, want 1", got)
	}
	if !strings.Contains(b.logs.String(), `"msg":"model loaded again","backend":"gpu1","model":"tiny:latest","request_id":"`+causes.ID) {
		t.Error("no line in the log")
	}
}
