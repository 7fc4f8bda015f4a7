package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// asked is the answer to GET /api/queue.
type asked struct {
	Waiting, Limit int
	InFlight       int `json:"in_flight"`
	Requests       []struct {
		ID         string `json:"request_id"`
		Key        string
		KeyName    string `json:"key_name"`
		Model      string
		Class      string
		Position   int
		WaitedMS   float64 `json:"waited_ms"`
		ExpectedMS float64 `json:"expected_wait_ms"`
	}
	Backends []struct {
		Name     string
		Healthy  bool
		InFlight int `json:"in_flight"`
		Models   []struct {
			Model, State string
			InFlight     int `json:"in_flight"`
			Slots        int
		}
	}
}

func (b *bed) queue(key string) (q asked) {
	b.t.Helper()
	r := b.do("GET", "/api/queue", key, "")
	if err := json.Unmarshal([]byte(r.body), &q); err != nil || r.status != http.StatusOK {
		b.t.Fatalf("GET /api/queue: got %d %s, want 200", r.status, r.body)
	}
	return q
}

// why is the answer to GET /api/admin/explain.
type why struct {
	RequestID  string `json:"request_id"`
	State, Key string
	KeyName    string `json:"key_name"`
	Weight     float64
	Class      string
	Model      string
	WaitedMS   *float64 `json:"waited_ms"`
	Ahead      *int
	Position   *int
	ExpectedMS *float64 `json:"expected_wait_ms"`
	Tries      []struct {
		Backend, Why, Failed string
		LoadMS               float64 `json:"loading_ms"`
	}
	SlotMS    *float64 `json:"slot_ms"`
	ChargedMS *float64 `json:"charged_ms"`
	GPUMS     *float64 `json:"gpu_ms"`
	LoadMS    *float64 `json:"loading_ms"`
	Outcome   string
	ErrorCode string   `json:"error_code"`
	Recorded  bool     `json:"recorded_only"`
	Explained []string `json:"explanation"`
}

func (b *bed) explain(id string) (e why) {
	b.t.Helper()
	r := b.do("GET", "/api/admin/explain/"+id, adminSecret, "")
	if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != http.StatusOK {
		b.t.Fatalf("%s: %d %s, want %d", id, r.status, r.body, http.StatusOK)
	}
	return e
}

// begin sends a request and returns a function that waits for its answer.
func (b *bed) begin(path, key, body string) (answer func() reply) {
	b.t.Helper()
	came := make(chan reply, 1)
	req := b.request("POST", path, key, body)
	go func() {
		resp, err := b.client.Do(req)
		if err != nil {
			came <- reply{err: err}
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		came <- reply{resp.StatusCode, resp.Header, string(text), err}
	}()
	return func() reply {
		b.t.Helper()
		r := <-came
		if r.err != nil {
			b.t.Fatal(r.err)
		}
		return r
	}
}

const generateTiny = `{"model":"tiny","prompt":"x","stream":false}`

// A key that waits sees its own position and only the number of other requests. Admins see all requests. Each request is explained while
// it waits, while it runs, and after it has ended.
func TestTheQueueIsSeen(t *testing.T) {
	b := start(t, setup{slots: 1})
	first, firstPreview := b.key(`{"name":"first","role":"user","weight":4}`)
	night, nightPreview := b.key(`{"name":"night","role":"user","class":"batch"}`)
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, HeaderGate: gate})
	var answers []func() reply
	for i, key := range []string{first, night, first, first} {
		answers = append(answers, b.begin("/api/generate", key, generateTiny))
		b.until("it runs or waits", func() bool { s := b.sched.Snapshot(); return s.InFlight+s.Waiting == i+1 })
	}

	all := b.queue(adminSecret)
	if all.Waiting != 3 || all.InFlight != 1 || all.Limit != 1024 || len(all.Requests) != 3 {
		t.Fatalf("got the queue %+v, want 3 waiting and 1 in flight", all)
	}
	for i, r := range all.Requests {
		key, name, class := firstPreview, "first", "interactive"
		if i == 2 {
			key, name, class = nightPreview, "night", "batch"
		}
		compare(t, fmt.Sprintf("number %d: %+v", i, r),
			fact{"r.Key", r.Key, key},
			fact{"r.KeyName", r.KeyName, name},
			fact{"r.Class", r.Class, class},
			fact{"r.Position", r.Position, i + 1},
			fact{"r.Model", r.Model, "tiny:latest"},
			fact{"r.WaitedMS <= 0", r.WaitedMS <= 0, false},
			fact{"r.ExpectedMS < 1000", r.ExpectedMS < 1000, false},
		)
	}
	if len(all.Backends) != 1 || all.Backends[0].InFlight != 1 || !all.Backends[0].Healthy || len(all.Backends[0].Models) != 1 ||
		all.Backends[0].Models[0].State != "loaded" || all.Backends[0].Models[0].InFlight != 1 || all.Backends[0].Models[0].Slots != 1 {
		t.Errorf("got the backends %+v, want one with 1 request in flight on its loaded model", all.Backends)
	}
	own := b.queue(night)
	if own.Waiting != 3 || len(own.Requests) != 1 || own.Requests[0].Position != 3 || own.Requests[0].Key != nightPreview || own.Backends != nil {
		t.Errorf("a user's view: got %+v, want its own request at position 3 of 3", own)
	}
	if none := b.queue(b.user()); none.Waiting != 3 || none.Requests == nil || len(none.Requests) != 0 {
		t.Errorf("the view of a key without requests: got %+v, want 3 waiting and no details", none)
	}
	m := b.metrics()
	for series, want := range map[string]float64{
		"waiting_requests": 3, `waiting_requests_by_class{class="batch"}`: 1, `waiting_requests_by_class{class="interactive"}`: 2, `in_flight_requests{backend="gpu1"}`: 1,
	} {
		if got := m["ollama_api_"+series]; got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}

	e := b.explain(own.Requests[0].ID)
	if e.State != "waiting" || e.Key != nightPreview || e.KeyName != "night" || e.Class != "batch" || e.Weight != 1 || *e.Position != 3 || *e.Ahead != 0 ||
		*e.WaitedMS <= 0 || *e.ExpectedMS < 1000 || len(e.Tries) != 0 || e.SlotMS != nil || !strings.Contains(strings.Join(e.Explained, " "), "number 3 in the queue for tiny:latest") {
		t.Errorf("got %+v, want a waiting request at position 3", e)
	}
	close(gate)
	for i, answer := range answers {
		r := answer()
		id := r.header.Get("X-Request-Id")
		e := b.explain(id)
		if r.status != 200 || e.State != "ended" || e.RequestID != id || e.Outcome != "ok" || len(e.Tries) != 1 || e.Tries[0].Backend != "gpu1" || *e.GPUMS <= 0 || *e.LoadMS != 0 {
			t.Fatalf("number %d: %d %s: %+v", i, r.status, r.body, e)
		}
		weight := map[string]float64{firstPreview: 4, nightPreview: 1}[e.Key]
		if e.Weight != weight || *e.SlotMS <= 0 || *e.ChargedMS > *e.SlotMS/weight+0.001 || (*e.ChargedMS > 0) != (i != 1) { // no other key waits for the batch request
			t.Errorf("number %d was charged %v of %v, want the time while others waited: %+v", i, *e.ChargedMS, *e.SlotMS, e)
		}
		if i == 3 && (*e.Ahead != 2 || *e.WaitedMS < 1 || !strings.Contains(strings.Join(e.Explained, " "), "2 other requests waited for the model when it arrived")) {
			t.Errorf("the last: %+v", e)
		}
		if i == 0 && !strings.Contains(e.Explained[0], "at once") {
			t.Errorf("the first: %+v", e)
		}
	}
	logs := b.logs.String()
	for _, field := range []string{`"queue_wait_ms":`, `"why":"only"`, `"why":"loaded"`, `"backend":"gpu1"`, `"tries":1`} {
		if !strings.Contains(logs, field) {
			t.Errorf("no %s in the log, want %v in it", field, field)
		}
	}
	m = b.metrics()
	if got := m[`ollama_api_placements_total{backend="gpu1",reason="only"}`] + m[`ollama_api_placements_total{backend="gpu1",reason="loaded"}`]; got != 4 {
		t.Errorf("%v placements, want 4", got)
	}
	if got := m[`ollama_api_model_slots{backend="gpu1",model="tiny:latest"}`]; got != 1 {
		t.Errorf("%v slots, want 1", got)
	}
}

// A running request is explained while it runs. A request that found the queue full, and one that another server served, are explained
// afterwards.
func TestExplainOthers(t *testing.T) {
	b := start(t, setup{slots: 1, servers: 2, maxQueue: 1})
	key := b.user()
	gate := make(chan struct{})
	for _, s := range b.all() {
		s.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, HeaderGate: gate})
	}
	var answers []func() reply
	for i := range 3 {
		answers = append(answers, b.begin("/api/generate", key, generateTiny))
		b.until("it runs or waits", func() bool { s := b.sched.Snapshot(); return s.InFlight+s.Waiting == i+1 })
	}
	full := b.do("POST", "/api/generate", key, generateTiny)
	e := b.explain(full.header.Get("X-Request-Id"))
	if full.status != 503 || e.State != "ended" || e.ErrorCode != "queue_full" || len(e.Tries) != 0 || e.Outcome != "" || !strings.Contains(strings.Join(e.Explained, " "), "got none") {
		t.Errorf("%d %+v", full.status, e)
	}
	close(gate)
	for _, answer := range answers {
		if r := answer(); r.status != 200 {
			t.Errorf("got %d %s, want 200", r.status, r.body)
		}
	}

	streamed := make(chan struct{}, 1)
	streamed <- struct{}{} // for the first piece
	b.others[0].Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, Gate: streamed})
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, Gate: streamed})
	resp := b.open("/api/generate", key, `{"model":"tiny","prompt":"x"}`)
	e = b.explain(resp.Header.Get("X-Request-Id"))
	if e.State != "running" || e.Outcome != "" || *e.SlotMS <= 0 || e.GPUMS != nil {
		t.Errorf("got %+v, want a running request with slot_ms", e)
	}
	close(streamed)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// If a server breaks a request before its first byte, the explanation shows where the request went then.
func TestExplainFailover(t *testing.T) {
	b := start(t, setup{servers: 2})
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Fault: ollamatest.Close})
	r := b.do("POST", "/api/generate", b.user(), generateTiny)
	e := b.explain(r.header.Get("X-Request-Id"))
	if r.status != 200 || e.Outcome != "ok" || len(e.Tries) != 2 || e.Tries[0].Backend != "gpu1" || e.Tries[0].Failed == "" || e.Tries[1].Backend != "gpu2" ||
		!strings.Contains(strings.Join(e.Explained, " "), "It was sent to gpu1: it was the least busy server with the model in memory; that failed (upstream error), and it was sent to another server.") {
		t.Errorf("%d %+v", r.status, e)
	}
}

// For requests that are no longer in memory, the explanation comes from the books.
func TestExplainFromTheBooks(t *testing.T) {
	b := start(t, setup{})
	_, preview := b.key(`{"name":"old","role":"user","weight":2}`)
	row := api.Record{
		Admission: api.Admission{ID: "old-request", At: time.Now().Add(-time.Hour), Key: preview, Model: "tiny:latest", Endpoint: "/api/chat", Backend: "gpu7", Class: "inference"},
		Outcome:   api.OutcomeTimeout, ErrorCode: api.CodeUpstreamTimeout, Status: 504, Slot: 3 * time.Second, GPU: time.Second,
		Queued: 4 * time.Second, Loading: 2 * time.Second,
	}
	if _, err := b.store.AddRecords(t.Context(), []api.Record{row}); err != nil {
		t.Fatal(err)
	}
	e := b.explain("old-request")
	compare(t, fmt.Sprintf("got %+v", e),
		fact{"e.Recorded", e.Recorded, true},
		fact{"e.State", e.State, "ended"},
		fact{"e.KeyName", e.KeyName, "old"},
		fact{"*e.WaitedMS", *e.WaitedMS, 4000},
		fact{"*e.LoadMS", *e.LoadMS, 2000},
		fact{"e.Ahead != nil", e.Ahead != nil, false},
		fact{"e.Tries[0].Backend", e.Tries[0].Backend, "gpu7"},
		fact{"*e.SlotMS", *e.SlotMS, 3000},
		fact{"e.ChargedMS != nil", e.ChargedMS != nil, false},
		fact{"*e.GPUMS", *e.GPUMS, 1000},
		fact{"e.Outcome", e.Outcome, "timeout"},
	)
	for _, id := range []string{"nosuch", "a%20b", strings.Repeat("x", 200), "%2e%2e"} {
		if r := b.do("GET", "/api/admin/explain/"+id, adminSecret, ""); r.status != 404 || !strings.Contains(r.body, "no request with this id") {
			t.Errorf("%.20s: %d %s, want 404, %q in it", id, r.status, r.body, "no request with this id")
		}
	}
}

// holding makes a fake hold one model at a time, like a server whose memory is full. A request without a prompt loads a model.
func holding(s *ollamatest.Server, gate <-chan struct{}) {
	memory := make(chan string, 1)
	memory <- "one:latest"
	s.Handle("GET", "/api/ps", func(*ollamatest.Request) ollamatest.Answer {
		model := <-memory
		memory <- model
		return ollamatest.Answer{Body: fmt.Sprintf(`{"models":[{"name":%q,"model":%q}]}`, model, model)}
	})
	for _, path := range []string{"/api/generate", "/api/embed"} {
		s.Handle("POST", path, func(r *ollamatest.Request) ollamatest.Answer {
			var ask struct{ Model, Prompt, Input string }
			_ = json.Unmarshal(r.Body, &ask)
			if !strings.Contains(ask.Model, ":") {
				ask.Model += ":latest"
			}
			switch {
			case ask.Prompt != "":
				return ollamatest.Answer{Tokens: 2}
			case ask.Input != "":
				return ollamatest.Answer{Body: `{"model":"x","embeddings":[[0.5]],"total_duration":9,"load_duration":1,"prompt_eval_count":1}`}
			}
			<-memory
			memory <- ask.Model
			return ollamatest.Answer{Body: `{"model":"x","done":true,"done_reason":"load"}`, HeaderGate: gate}
		})
	}
}

// The gateway loads a model with its own request, which has the options of the request that waits for it. The load continues if that client
// leaves while others wait. Each explanation has the time of the load.
func TestPreload(t *testing.T) {
	b := start(t, setup{})
	gate := make(chan struct{})
	holding(b.ollama, gate)
	b.models([]string{"one:latest", "two:latest"})
	user, preview := b.key(`{"name":"user","role":"user"}`)
	two := `{"model":"two","prompt":"x","stream":false,"options":{"num_ctx":4096,"num_gpu":3,"temperature":0}}`

	leave := b.leave("/api/generate", user, two, false)
	load := b.ollama.WaitRequestTo(1, "POST", "/api/generate")
	if string(load.Body) != `{"model":"two:latest","options":{"num_ctx":4096,"num_gpu":3}}` {
		t.Errorf("the model was loaded with %s, want %s", load.Body, `{"model":"two:latest","options":{"num_ctx":4096,"num_gpu":3}}`)
	}
	b.until("the model is being loaded", func() bool {
		q := b.queue(adminSecret)
		return len(q.Backends[0].Models) == 2 && q.Backends[0].Models[1].State == "loading" && q.Waiting == 1
	})
	stays := b.begin("/api/generate", user, two)
	b.until("two wait", func() bool { return b.sched.Snapshot().Waiting == 2 })
	leave()
	b.until("one waits", func() bool { return b.sched.Snapshot().Waiting == 1 })
	select {
	case <-load.Closed:
		t.Fatal("the load was cancelled although another request waits for it")
	default:
	}
	close(gate)
	r := stays()
	if r.status != 200 || len(b.ollama.RequestsTo("POST", "/api/generate")) != 2 {
		t.Errorf("%d %s after %d requests, want 200, 2 of them", r.status, r.body, len(b.ollama.RequestsTo("POST", "/api/generate")))
	}

	// Back to the first model: the key whose request causes the change pays for it.
	r = b.do("POST", "/api/embed", user, `{"model":"one","input":"x"}`)
	loads := b.ollama.RequestsTo("POST", "/api/embed")
	if r.status != 200 || len(loads) != 2 || string(loads[0].Body) != `{"model":"one:latest","input":""}` {
		t.Fatalf("%d %s, loaded with %s, want 200, 2 of them, %s", r.status, r.body, loads[0].Body, `{"model":"one:latest","input":""}`)
	}
	e := b.explain(r.header.Get("X-Request-Id"))
	if e.Tries[0].Why != "change" || e.Tries[0].LoadMS <= 0 || *e.LoadMS != e.Tries[0].LoadMS || *e.SlotMS < *e.LoadMS || e.Key != preview ||
		!strings.Contains(strings.Join(e.Explained, " "), "it changed its model for this request, which took") {
		t.Errorf("got %+v, want a change of the model", e)
	}
	m := b.metrics()
	if n, s := m[`ollama_api_model_changes_total{backend="gpu1",result="done"}`], m[`ollama_api_model_change_seconds_total{backend="gpu1"}`]; n != 2 || s <= 0 {
		t.Errorf("%v changes of %v s, want 2, more than 0", n, s)
	}
	if !strings.Contains(b.logs.String(), `"msg":"model loaded","backend":"gpu1","model":"one:latest"`) {
		t.Error("no line in the log")
	}
}

// A load continues when its client leaves, and the request counts. Otherwise it would cost others two loads and its client nothing.
func TestALoadIsCountedForTheClientThatLeaves(t *testing.T) {
	b := start(t, setup{})
	gate := make(chan struct{})
	holding(b.ollama, gate)
	b.models([]string{"one:latest", "two:latest"})
	user, preview := b.key(`{"name":"leaves","role":"user","rate_limit":5}`)
	leave := b.leave("/api/generate", user, `{"model":"two","prompt":"x"}`, false)
	load := b.ollama.WaitRequestTo(1, "POST", "/api/generate")
	leave()
	for _, r := range b.rows(1) {
		compare(t, fmt.Sprintf("booked %+v", r),
			fact{"r.Key", r.Key, preview},
			fact{"r.Outcome", r.Outcome, api.OutcomeClientGone},
			fact{"r.Loading <= 0", r.Loading <= 0, false},
			fact{"r.PromptTokens", r.PromptTokens, 0},
			fact{"r.Model", r.Model, "two:latest"},
		)
	}
	if r := b.do("GET", "/api/stats", user, ""); !strings.Contains(r.body, `"remaining":4`) {
		t.Errorf("its limit of 5 has %s, want 4 remaining", r.body)
	}
	select {
	case <-load.Closed:
		t.Error("the load was cancelled, want it to continue")
	default:
	}
	close(gate)
	b.until("it is loaded", func() bool { return b.queue(adminSecret).Backends[0].InFlight == 0 })
}

// A load that fails is reported to the client that asked, in Ollama's own words.
func TestALoadThatFails(t *testing.T) {
	b := start(t, setup{})
	b.models([]string{"one:latest", "two:latest"})
	user := b.user()
	const sentence = `model requires more system memory (9 GiB) than is available (1 GiB)`
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Status: 500, Body: `{"error":"` + sentence + `"}`})
	b.ollama.Script("GET", "/api/ps", ollamatest.Answer{Body: `{"models":[{"name":"one:latest","model":"one:latest"}]}`})
	b.fleet.ProbeAll(t.Context())
	r := b.do("POST", "/api/generate", user, `{"model":"two","prompt":"x"}`)
	if r.status != 500 || !strings.Contains(r.body, sentence) {
		t.Errorf("got %d %s, want 500", r.status, r.body)
	}
	if n := b.metrics()[`ollama_api_model_changes_total{backend="gpu1",result="failed"}`]; n < 1 {
		t.Errorf("%v failed changes, want at least 1", n)
	}
}

// The turns of one conversation go to one server. Different conversations go to all servers.
func TestConversationsStayWhereTheyBegan(t *testing.T) {
	b := start(t, setup{servers: 2, change: func(o *server.Options) { o.Queue.Prefix = true }})
	key := b.user()
	used := map[string]int{}
	for i := range 16 {
		home := ""
		first := fmt.Sprintf(`{"role":"system","content":"be brief"},{"role":"user","content":"question %d"}`, i)
		for path, turns := range map[string][]string{
			"/api/chat": {first, first + `,{"role":"assistant","content":"a"},{"role":"user","content":"and then?"}`}, "/v1/chat/completions": {first},
		} {
			for _, turn := range turns {
				r := b.do("POST", path, key, `{"model":"tiny","stream":false,"messages":[`+turn+`]}`)
				at := r.header.Get("X-Backend")
				if r.status != 200 || home != "" && home != at {
					t.Fatalf("conversation %d began at %q and went to %q: %d %s", i, home, at, r.status, r.body)
				}
				home = at
				used[at]++
				if e := b.explain(r.header.Get("X-Request-Id")); e.Tries[0].Why != "warm_start" {
					t.Errorf("got %+v, want warm_start", e)
				}
			}
		}
	}
	if used["gpu1"] == 0 || used["gpu2"] == 0 {
		t.Errorf("all went to one server: %v, want not 0, not 0", used)
	}
}

// A key with four times the weight gets four turns for each turn of another key. No single key can fill the queue.
func TestWeightAndQueueOfAKey(t *testing.T) {
	b := start(t, setup{slots: 1, change: func(o *server.Options) { o.Queue.PerKey = 4 }})
	heavy, heavyPreview := b.key(`{"name":"heavy","role":"user","weight":4}`)
	light, _ := b.key(`{"name":"light","role":"user"}`)
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, HeaderGate: gate})
	var answers []func() reply
	for i := range 9 {
		key := []string{light, heavy}[i%2]
		if i == 0 {
			key = adminSecret
		}
		answers = append(answers, b.begin("/api/generate", key, generateTiny))
		b.until("it runs or waits", func() bool { s := b.sched.Snapshot(); return s.InFlight+s.Waiting == i+1 })
	}
	if r := b.do("POST", "/api/generate", light, generateTiny); r.status != 503 || !strings.Contains(r.body, "this key has its share of the queue already") || r.header.Get("Retry-After") == "" {
		t.Errorf("a fifth request of the key: got %d %s, want 503, %q in it, a text", r.status, r.body, "this key has its share of the queue already")
	}
	list := b.queue(adminSecret).Requests
	for i, r := range list {
		if last := i >= 5; last == (r.Key == heavyPreview) && i != 0 && i != 1 {
			t.Errorf("request %d of %d has the key %s", i+1, len(list), r.KeyName)
		}
	}
	close(gate)
	for _, answer := range answers {
		answer()
	}
}
