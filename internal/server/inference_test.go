package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

func TestNativeAnswersPassUnchanged(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for _, c := range []struct{ path, recording, adds string }{
		{"/api/chat", "chat", ""},
		{"/api/chat", "chat-stream", ""},
		{"/api/chat", "chat-load", ""},
		{"/api/generate", "generate", ""},
		{"/api/generate", "generate-stream", ""},
		{"/api/generate", "generate-load", ""},
		{"/api/embed", "embed", ""},
		{"/api/embeddings", "embeddings", ""},
		{"/v1/chat/completions", "v1-chat", ""},
		{"/v1/chat/completions", "v1-chat-stream-usage", ""},
		{"/v1/completions", "v1-completions", ""},
		{"/v1/completions", "v1-completions-stream-usage", ""},
		{"/v1/embeddings", "v1-embeddings", ""},
		{"/v1/responses", "v1-responses", ""},
		{"/v1/responses", "v1-responses-stream", ""},
		{"/v1/responses", "error-unknown-model-v1-responses", ""},
		{"/v1/messages", "v1-messages", ""},
		{"/v1/messages", "v1-messages-stream", ""},
		{"/v1/messages", "error-unknown-model-v1-messages", `,"message":"model 'nope' not found"`},
		{"/api/chat", "error-unknown-model-chat", `,"detail":"model 'nope' not found"`},
		{"/v1/chat/completions", "error-unknown-model-v1-chat", ""},
	} {
		t.Run(c.recording, func(t *testing.T) {
			b.ollama.Script("POST", c.path, ollamatest.Answer{Recording: c.recording})
			got := b.do("POST", c.path, key, string(ollamatest.RecordedRequest(c.recording)))
			status, header, body := recorded(t, c.recording)
			// A failure has its message in our additional field too. Apart from that, it is Ollama's byte for byte.
			if i := strings.LastIndexByte(body, '}'); c.adds != "" {
				body = body[:i] + c.adds + body[i:]
			}
			if got.status != status || got.body != body || got.err != nil {
				t.Errorf("got %d, %v\n%s\nwant %d\n%s", got.status, got.err, got.body, status, body)
			}
			if g, w := got.header.Get("Content-Type"), header.Get("Content-Type"); g != w {
				t.Errorf("content type %q, want %q", g, w)
			}
			if got.header.Get("X-Request-Id") == "" || got.header.Get("X-Ratelimit-Limit") != "100" {
				t.Errorf("headers missing: %v, want a text, %q", got.header, "100")
			}
		})
	}
}

// An option of the wrong type is the client's mistake. Ollama answers 500, which SDKs try again. The gateway reports such an option itself
// if a policy covers it; Ollama reports the others.
func TestOptionOfTheWrongType(t *testing.T) {
	b := start(t, setup{})
	body := string(ollamatest.RecordedRequest("error-option-type"))
	if r := b.do("POST", "/api/chat", b.user(), body); r.status != 400 || len(b.ollama.RequestsTo("POST", "/api/chat")) != 0 {
		t.Errorf("a user's: %d %s, want 400, 0 of them", r.status, r.body)
	}
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Recording: "error-option-type"})
	const want = `{"error":"option \"num_predict\" must be of type integer","detail":"option \"num_predict\" must be of type integer"}`
	if r := b.do("POST", "/api/chat", adminSecret, body); r.status != 500 || r.body != want {
		t.Errorf("an admin's: %d %s, want 500, %v", r.status, r.body, want)
	}
}

func TestInjectedUsageIsTakenOutAgain(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for path, recordings := range map[string][2]string{
		"/v1/chat/completions": {"v1-chat-stream", "v1-chat-stream-usage"},
		"/v1/completions":      {"v1-completions-stream", "v1-completions-stream-usage"},
	} {
		b.ollama.Script("POST", path, ollamatest.Answer{Recording: recordings[1]})
		got := b.do("POST", path, key, string(ollamatest.RecordedRequest(recordings[0])))
		if strings.Contains(got.body, `"usage"`) || !strings.HasSuffix(got.body, "data: [DONE]\n\n") {
			t.Errorf("%s: want the stream without usage and with its end, got:\n%s", path, got.body)
		}
		_, _, want := recorded(t, recordings[0])
		if g, w := strings.Count(got.body, "data: "), strings.Count(want, "data: "); g != w {
			t.Errorf("%s: %d events, want %d", path, g, w)
		}
		for _, event := range strings.Split(strings.TrimSpace(got.body), "\n\n") {
			if data := strings.TrimPrefix(event, "data: "); data != "[DONE]" && !json.Valid([]byte(data)) {
				t.Errorf("%s: an event is not JSON: %s", path, data)
			}
		}
		seen := b.ollama.RequestsTo("POST", path)
		if body := string(seen[len(seen)-1].Body); !strings.Contains(body, `"stream_options":{"include_usage":true}`) {
			t.Errorf("%s: the gateway did not ask Ollama for usage: %s, want %s in it", path, body, `"stream_options":{"include_usage":true}`)
		}
	}
	stats := b.stats(key)
	if stats["prompt_tokens"] != 34.0 || stats["completion_tokens"] != 16.0 || stats["estimated_requests"] != 0.0 {
		t.Errorf("books: %v, want %v, %v, %v", stats, 34.0, 16.0, 0.0)
	}
}

func TestBooksHoldWhatOllamaCounted(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for path, body := range map[string]string{
		"/api/chat":            `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`,
		"/api/generate":        `{"model":"tiny","prompt":"x","stream":false}`,
		"/v1/chat/completions": `{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":true}`,
		"/v1/completions":      `{"model":"tiny","prompt":"x"}`,
		"/v1/responses":        `{"model":"tiny","input":"x","stream":true}`,
		"/v1/messages":         `{"model":"tiny","max_tokens":9,"messages":[],"stream":true}`,
	} {
		b.ollama.Script("POST", path, ollamatest.Answer{Tokens: 7, PromptTokens: 11})
		if got := b.do("POST", path, key, body); got.status != 200 {
			t.Fatalf("%s: %d %s, want 200", path, got.status, got.body)
		}
	}
	stats := b.stats(key)
	if stats["total_requests"] != 6.0 || stats["prompt_tokens"] != 66.0 || stats["completion_tokens"] != 42.0 || stats["last_24h_requests"] != 6.0 {
		t.Errorf("got the statistics %v, want 6 requests with 66 and 42 tokens", stats)
	}
	if m := stats["requests_by_model"].(map[string]any); m["tiny:latest"] != 6.0 {
		t.Errorf("by model: %v, want %v", m, 6.0)
	}
	limits := stats["limits"].(map[string]any)
	if limits["remaining"] != 94.0 {
		t.Errorf("limits: %v, want %v", limits, 94.0)
	}
}

func TestRateLimitAdmitsExactlyTheLimit(t *testing.T) {
	b := start(t, setup{slots: 1000})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Recording: "chat"} })
	key, _ := b.key(`{"name":"limited","role":"user","rate_limit":100}`)
	var mu sync.Mutex
	statuses := map[int]int{}
	var refused reply
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			r := b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[],"stream":false}`)
			mu.Lock()
			defer mu.Unlock()
			statuses[r.status]++
			if r.status == http.StatusTooManyRequests {
				refused = r
			}
		})
	}
	wg.Wait()
	if statuses[200] != 100 || statuses[429] != 400 {
		t.Fatalf("statuses: %v, want 100, 400", statuses)
	}
	if n := len(b.ollama.RequestsTo("POST", "/api/chat")); n != 100 {
		t.Errorf("Ollama got %d requests, want 100", n)
	}
	if v := refused.json(t); v["detail"] != "Rate limit exceeded" || v["error"] != "Rate limit exceeded" {
		t.Errorf("body: %s, want %q, %q", refused.body, "Rate limit exceeded", "Rate limit exceeded")
	}
	for name, want := range map[string]string{"X-Should-Retry": "false", "X-Ratelimit-Remaining": "0", "X-Ratelimit-Limit": "100"} {
		if got := refused.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a, r := refused.header.Get("Retry-After"), refused.header.Get("X-Ratelimit-Reset"); a == "" || a != r {
		t.Errorf("Retry-After %q, Reset %q, want a text, %v", a, r, r)
	}
}

func TestMaxConcurrent(t *testing.T) {
	b := start(t, setup{})
	key, _ := b.key(`{"name":"two","role":"user","max_concurrent":2}`)
	gate := make(chan struct{})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer {
		return ollamatest.Answer{Recording: "chat", HeaderGate: gate}
	})
	done := make(chan reply, 2)
	for range 2 {
		go func() { done <- b.do("POST", "/api/chat", key, `{"model":"tiny"}`) }()
	}
	b.ollama.WaitRequestTo(2, "POST", "/api/chat")
	r := b.do("POST", "/api/chat", key, `{"model":"tiny"}`)
	if r.status != 429 || r.header.Get("Retry-After") != "1" || r.header.Get("X-Should-Retry") != "" {
		t.Errorf("third: %d %v %s, want 429, %q, none", r.status, r.header, r.body, "1")
	}
	close(gate)
	for range 2 {
		if r := <-done; r.status != 200 {
			t.Errorf("got %d %s, want 200", r.status, r.body)
		}
	}
	if r := b.do("POST", "/api/chat", key, `{"model":"tiny"}`); r.status != 200 {
		t.Errorf("after: %d %s, want 200", r.status, r.body)
	}
}

func TestEachChunkIsFlushedAsItComes(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	req, _ := http.NewRequest("POST", b.url+"/api/chat", strings.NewReader(`{"model":"tiny","messages":[]}`))
	req.Header.Set("Authorization", "Bearer "+key)
	go func() { gate <- struct{}{} }()
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for i := range 4 {
		var line struct{ Done bool }
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Done != (i == 3) {
			t.Errorf("line %d: done %v", i, line.Done)
		}
		if i < 3 {
			gate <- struct{}{} // Ollama sends the next chunk only after this one has arrived
		}
	}
}

func TestClientThatLeavesClosesTheUpstream(t *testing.T) {
	b := start(t, setup{slots: 1})
	key := b.user()
	gate := make(chan struct{}, 2)
	defer close(gate)
	gate <- struct{}{}
	gate <- struct{}{}
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 5, Gate: gate}, ollamatest.Answer{Recording: "chat"})
	req, _ := http.NewRequest("POST", b.url+"/api/chat", strings.NewReader(`{"model":"tiny","messages":[{"role":"user","content":"hello there"}]}`))
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := b.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 10)
	if _, err := resp.Body.Read(line); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat").WaitClosed()
	// The only slot is free again, so the next request is served.
	if r := b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`); r.status != 200 {
		t.Errorf("next: %d %s, want 200", r.status, r.body)
	}
	// The slot is released before the row is written.
	b.until("both are booked", func() bool {
		outcomes := b.stats(key)["requests_by_outcome"].(map[string]any)
		return outcomes["client_gone"] == 1.0 && outcomes["ok"] == 1.0
	})
}

func TestUpstreamThatDiesIsNeverAWholeAnswer(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for _, c := range []struct{ name, path, body, record string }{
		{"native", "/api/chat", `{"model":"tiny","messages":[]}`, `{"error":"`},
		{"openai", "/v1/chat/completions", `{"model":"tiny","messages":[],"stream":true}`, `data: {"error":{`},
		{"completions", "/v1/completions", `{"model":"tiny","prompt":"","stream":true}`, `data: {"error":{`},
		{"responses", "/v1/responses", `{"model":"tiny","input":"","stream":true}`, `data: {"type":"error","sequence_number":`},
		{"messages", "/v1/messages", `{"model":"tiny","messages":[],"stream":true}`, `data: {"type":"error","error":{"type":"api_error","message":"`},
	} {
		for _, fault := range []ollamatest.Answer{
			{Tokens: 5, Fault: ollamatest.Close, FaultAt: 700},
			{Tokens: 5, Fault: ollamatest.Reset, FaultAt: 700},
			{Tokens: 5, NoTerminal: true},
		} {
			b.ollama.Script("POST", c.path, fault)
			r := b.do("POST", c.path, key, c.body)
			lines := strings.Split(strings.TrimSpace(r.body), "\n")
			if c.name == "responses" { // its error is the event before the last
				lines = lines[:len(lines)-3]
			}
			if last := lines[len(lines)-1]; (r.err == nil) != (c.name != "native") || !strings.HasPrefix(last, c.record) || strings.Contains(r.body, "[DONE]") ||
				strings.Contains(r.body, "response.completed") || strings.Contains(r.body, "message_stop") {
				t.Errorf("%s %v: err %v, last record %s", c.name, fault.Fault, r.err, last)
			}
		}
		for _, fault := range []ollamatest.Answer{{Fault: ollamatest.Close}, {Tokens: 3, Fault: ollamatest.Close, FaultAt: 40}} {
			b.ollama.Script("POST", c.path, fault, fault)
			if r := b.do("POST", c.path, key, c.body); r.status != 502 || !strings.Contains(r.body, `"error"`) {
				t.Errorf("%s before the first byte: %d %s, want 502, %s in it", c.name, r.status, r.body, `"error"`)
			}
		}
	}
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Recording: "chat", Fault: ollamatest.Close, FaultAt: 300})
	if r := b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`); r.status != 502 {
		t.Errorf("half an object: %d %s, want 502", r.status, r.body)
	}
	stats := b.stats(key)
	if got := stats["requests_by_outcome"].(map[string]any)["upstream_error"]; got != 26.0 || stats["total_requests"] != 26.0 {
		t.Errorf("booked: %v, want %v, %v", stats, 26.0, 26.0)
	}
}

func TestQueueIsBoundedAndGivesBack(t *testing.T) {
	b := start(t, setup{slots: 1, maxQueue: 1})
	key, _ := b.key(`{"name":"q","role":"user","rate_limit":10}`)
	gate := make(chan struct{})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer {
		return ollamatest.Answer{Recording: "chat", HeaderGate: gate}
	})
	done := make(chan reply, 3)
	for range 3 {
		go func() { done <- b.do("POST", "/api/chat", key, `{"model":"tiny"}`) }()
	}
	first := <-done // one runs and one waits, so the third is refused at once
	if first.status != 503 || first.header.Get("Retry-After") == "" {
		t.Errorf("got %d %v %s, want 503", first.status, first.header, first.body)
	}
	close(gate)
	for range 2 {
		if r := <-done; r.status != 200 {
			t.Errorf("got %d %s, want 200", r.status, r.body)
		}
	}
	if l := b.stats(key)["limits"].(map[string]any); l["remaining"] != 8.0 {
		t.Errorf("a refused request was charged: %v, want %v", l, 8.0)
	}
}

func TestBackendAway(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	b.ollama.Close()
	for path, body := range map[string]string{"/api/chat": `{"model":"tiny"}`, "/v1/chat/completions": `{"model":"tiny"}`} {
		r := b.do("POST", path, key, body)
		if r.status != 503 || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s, want 503, a text", path, r.status, r.body)
		}
	}
	if r := b.do("GET", "/readyz", "", ""); r.status != 503 {
		t.Errorf("readyz %d, want 503", r.status)
	}
	if r := b.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("healthz %d, want 200", r.status)
	}
	if r := b.do("GET", "/health", "", ""); r.status != 200 || r.json(t)["ollama_backend"] != "unreachable" {
		t.Errorf("health %d %s, want 200, %q", r.status, r.body, "unreachable")
	}
	if l := b.stats(key)["limits"].(map[string]any); l["remaining"] != 100.0 {
		t.Errorf("the request was charged although no backend served it: %v, want %v", l, 100.0)
	}
}

func TestModelsThatAKeyMayUse(t *testing.T) {
	b := start(t, setup{})
	b.ollama.Models("tiny:latest", "secret:latest", "big:cloud")
	key, _ := b.key(`{"name":"some","role":"user","models":["tiny"]}`)
	for _, path := range []string{"/api/tags", "/api/models", "/v1/models"} {
		r := b.do("GET", path, key, "")
		if !strings.Contains(r.body, "tiny:latest") || strings.Contains(r.body, "secret") || strings.Contains(r.body, "cloud") {
			t.Errorf("%s: %s, want %q in it, no %q, no %q", path, r.body, "tiny:latest", "secret", "cloud")
		}
	}
	before := len(b.ollama.Requests())
	for _, spelling := range []string{
		"secret", "SECRET", "secret:latest", "library/secret", "registry.ollama.ai/library/secret:latest",
		"https://registry.ollama.ai/library/secret", " secret ", "secret:local",
	} {
		for _, path := range []string{"/api/chat", "/v1/chat/completions", "/api/show"} {
			if r := b.do("POST", path, key, fmt.Sprintf(`{"model":%q}`, spelling)); r.status != 404 {
				t.Errorf("%s %q: %d %s, want 404", path, spelling, r.status, r.body)
			}
		}
	}
	if r := b.do("GET", "/v1/models/secret", key, ""); r.status != 404 {
		t.Errorf("one model: %d, want 404", r.status)
	}
	if r := b.do("POST", "/api/chat", key, `{"model":"big:cloud"}`); r.status != 403 {
		t.Errorf("cloud: %d %s, want 403", r.status, r.body)
	}
	if n := len(b.ollama.Requests()); n != before {
		t.Errorf("%d refused requests reached Ollama, want %v", n-before, before)
	}
	if r := b.do("GET", "/v1/models/tiny", key, ""); r.status != 200 || r.json(t)["id"] != "tiny" {
		t.Errorf("own model: %d %s, want 200, %q", r.status, r.body, "tiny")
	}
	if r := b.do("POST", "/api/show", key, `{"model":"tiny"}`); r.status != 200 || r.json(t)["modelfile"] != "# The Modelfile names files of the server, so this gateway shows it to admin keys only.\n" || strings.Contains(r.body, "blobs") {
		t.Errorf("show: %d %s, want the reason in place of the Modelfile", r.status, r.body)
	}
	if r := b.do("POST", "/api/show", adminSecret, `{"model":"tiny"}`); !strings.Contains(r.body, "FROM ") {
		t.Errorf("show to an admin: %d %s, want %q in it", r.status, r.body, "FROM ")
	}
}

func TestStopEndsStreamsWithTheirErrorRecord(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	b := start(t, setup{})
	key := b.user()
	gate := make(chan struct{})
	defer close(gate)
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 5, Gate: gate})
	done := make(chan reply, 1)
	go func() { done <- b.do("POST", "/api/chat", key, `{"model":"tiny","messages":[]}`) }()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	gate <- struct{}{}
	gate <- struct{}{} // the gateway has sent the first record when it reads the second
	b.stop()
	r := <-done
	if r.err == nil || !strings.Contains(r.body, `{"error":"the gateway is stopping`) {
		t.Errorf("err %v, body %s", r.err, r.body)
	}
	w := httptest.NewRecorder()
	if b.server.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil)); w.Code != 503 {
		t.Errorf("readiness of a stopped server: %d %s, want 503", w.Code, w.Body)
	}
	stats, err := b.store.AllStatistics(t.Context(), time.Now())
	if err != nil || stats.Total.ByOutcome["interrupted"] != 1 || stats.Total.EstimatedRows != 1 {
		t.Errorf("booked: %v %v, want 1, 1", stats.Total.ByOutcome, err)
	}
}

func TestRefusalsOfOllamaAreBookedAsSuch(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for path, recording := range map[string]string{"/api/chat": "error-unknown-model-chat", "/v1/chat/completions": "error-unknown-model-v1-chat"} {
		b.ollama.Script("POST", path, ollamatest.Answer{Recording: recording})
		if r := b.do("POST", path, key, `{"model":"tiny","messages":[{"role":"user","content":"a few words"}]}`); r.status != 404 {
			t.Errorf("%s: %d, want 404", path, r.status)
		}
	}
	stats := b.stats(key)
	if o := stats["requests_by_outcome"].(map[string]any); o["refused"] != 2.0 || stats["estimated_requests"] != 0.0 || stats["prompt_tokens"] != 0.0 {
		t.Errorf("booked: %v, want %v, %v, %v", stats, 2.0, 0.0, 0.0)
	}
}

func TestUpstreamSeesWhatItMay(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	req, _ := http.NewRequest("POST", b.url+"/api/chat?x=1", strings.NewReader(`{"model":"tiny","stream":false}`))
	for name, value := range map[string]string{
		"Authorization": "Bearer " + key, "Cookie": "a=b", "Origin": "http://evil", "X-Forwarded-For": "1.2.3.4",
		"X-Openwebui-User-Id": "7", "Referer": "http://x", "Idempotency-Key": "k", "Connection": "close, X-Request-Id", "Accept": "application/json", "User-Agent": "probe/1",
	} {
		req.Header.Set(name, value)
	}
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Recording: "chat", Header: http.Header{"Set-Cookie": {"s=1"}, "Server": {"x"}, "X-Other": {"y"}}})
	r := b.send(req)
	if r.status != 200 || r.header.Get("Set-Cookie") != "" || r.header.Get("Server") != "" || r.header.Get("X-Other") != "" {
		t.Errorf("answer: %d %v, want 200, none, none, none", r.status, r.header)
	}
	seen := b.ollama.RequestsTo("POST", "/api/chat")[0]
	if seen.Query != "" || seen.Host != strings.TrimPrefix(b.ollama.URL, "http://") {
		t.Errorf("query %q, host %q", seen.Query, seen.Host)
	}
	for name := range seen.Header {
		switch name {
		case "Accept", "User-Agent", "Content-Type", "Content-Length", "Host":
		default:
			t.Errorf("upstream got the header %s: %v", name, seen.Header[name])
		}
	}
}

func TestRefusedBodyCostsNothing(t *testing.T) {
	b := start(t, setup{})
	key, _ := b.key(`{"name":"ten","role":"user","rate_limit":10}`)
	for body, want := range map[string]int{`{"model":`: 400, `{"model":"tiny","model":"tiny"}`: 400, `{}`: 400} {
		r := b.do("POST", "/api/chat", key, body)
		if r.status != want || r.header.Get("X-Ratelimit-Remaining") != "10" {
			t.Errorf("%s: %d, remaining %s, want %v, %q", body, r.status, r.header.Get("X-Ratelimit-Remaining"), want, "10")
		}
	}
	if n := b.stats(key)["total_requests"]; n != 0.0 {
		t.Errorf("%v rows, want %v", n, 0.0)
	}
}
