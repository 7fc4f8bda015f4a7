package server_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

func beating(slots int) setup {
	return setup{slots: slots, change: func(o *server.Options) { o.Heartbeat = 5 * time.Millisecond }}
}

// open sends a request and returns its answer before the body is read.
func (b *bed) open(path, key, body string) *http.Response {
	b.t.Helper()
	resp, err := b.client.Do(b.request("POST", path, key, body))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// beats reports whether a line belongs to a heartbeat.
func beats(line string) bool {
	return line == ": waiting" || line == "event: ping" || line == `data: {"type":"ping"}` || strings.HasPrefix(line, `data: {"id":"",`)
}

const streamed = `{"model":"tiny","max_tokens":9,"messages":[],"prompt":"x","input":"x","stream":true}`

// While the upstream loads a model, a stream of events has heartbeats. Afterwards the whole stream comes.
func TestHeartbeatWhileOllamaIsSilent(t *testing.T) {
	b := start(t, beating(4))
	key := b.user()
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} {
		header, gate := make(chan struct{}), make(chan struct{}, 9)
		b.ollama.Script("POST", path, ollamatest.Answer{Tokens: 3, HeaderGate: header, Gate: gate})
		resp := b.open(path, key, streamed) // returns at the first heartbeat
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
			t.Errorf("%s: %d %v, want 200, %q, %q", path, resp.StatusCode, resp.Header, "text/event-stream", "no")
		}
		lines := bufio.NewScanner(resp.Body)
		hear := func(n int) {
			for n > 0 && lines.Scan() {
				if beats(lines.Text()) {
					n--
				}
			}
		}
		hear(2)
		close(header)
		gate <- struct{}{}
		hear(2) // also within the stream
		close(gate)
		var rest []string
		for lines.Scan() {
			if text := lines.Text(); text != "" && !beats(text) {
				rest = append(rest, text)
			}
		}
		all := strings.Join(rest, "\n")
		if lines.Err() != nil || !strings.Contains(all, "[DONE]") && !strings.Contains(all, "message_stop") && !strings.Contains(all, "response.completed") {
			t.Errorf("%s: %v\n%s", path, lines.Err(), all)
		}
	}
	if st := b.stats(key); st["completion_tokens"] != 12.0 || st["estimated_requests"] != 0.0 {
		t.Errorf("books: %v, want %v, %v", st, 12.0, 0.0)
	}
}

// A failure after a heartbeat is an event with Ollama's message.
func TestFailureBehindAHeartbeat(t *testing.T) {
	b := start(t, beating(4))
	key := b.user()
	for path, want := range map[string]string{
		"/v1/chat/completions": `data: {"error":{"message":"model 'tiny' not found","type":"not_found_error"`,
		"/v1/messages":         `data: {"type":"error","error":{"type":"not_found_error","message":"model 'tiny' not found"`,
	} {
		for _, answer := range []ollamatest.Answer{
			{Status: 404, Body: `{"error":{"message":"model 'tiny' not found","type":"not_found_error"}}`},
			{Status: 404, Body: `{"error":"model 'tiny' not found"}`},
		} {
			header := make(chan struct{})
			answer.HeaderGate = header
			b.ollama.Script("POST", path, answer)
			resp := b.open(path, key, streamed)
			close(header)
			text, err := readAll(resp)
			events := strings.Split(strings.TrimSpace(text), "\n\n")
			if resp.StatusCode != 200 || err != nil || !strings.Contains(events[len(events)-1], want) {
				t.Errorf("%s: %d %v, last event %s, want 200, %v in it", path, resp.StatusCode, err, events[len(events)-1], want)
			}
		}
	}
	if outcomes := b.stats(key)["requests_by_outcome"].(map[string]any); outcomes["refused"] != 4.0 {
		t.Errorf("outcomes: %v, want %v", outcomes, 4.0)
	}
}

// A client that waits in the queue gets the heartbeat as well. Native streams and whole answers never do, and keep their real status.
func TestHeartbeatInTheQueue(t *testing.T) {
	b := start(t, beating(1))
	key := b.user()
	header := make(chan struct{})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer {
		return ollamatest.Answer{Recording: "chat", HeaderGate: header}
	})
	first := make(chan reply, 1)
	go func() { first <- b.do("POST", "/api/chat", key, `{"model":"tiny","stream":false}`) }()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	resp := b.open("/v1/chat/completions", key, streamed)
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !beats(strings.TrimSpace(line)) {
		t.Errorf("in the queue: %q %v", line, err)
	}
	close(header)
	if r := <-first; r.status != 200 || strings.Contains(r.body, "waiting") {
		t.Errorf("got %d %s, want 200", r.status, r.body)
	}
	for _, body := range []string{`{"model":"tiny"}`, `{"model":"tiny","stream":false}`} {
		b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Status: 503, Body: `{"error":"server busy"}`})
		if r := b.do("POST", "/api/generate", key, body); r.status != 503 {
			t.Errorf("%s: %d %s, want 503", body, r.status, r.body)
		}
	}
}

func readAll(resp *http.Response) (string, error) {
	var b strings.Builder
	_, err := bufio.NewReader(resp.Body).WriteTo(&b)
	return b.String(), err
}

// A connection that was silent for longer than a write may take still works: the bound is for a write, not for the silence.
func TestSilenceIsNoSlowClient(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	b.server.CutAfter(50 * time.Millisecond)
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	go func() { gate <- struct{}{} }()
	resp := b.open("/api/chat", key, `{"model":"tiny","messages":[]}`)
	for from := time.Now(); time.Since(from) < 200*time.Millisecond; {
		b.do("GET", "/healthz", "", "")
	}
	close(gate)
	if text, err := readAll(resp); err != nil || !strings.Contains(text, `"done":true`) {
		t.Errorf("got %v %s, want a complete stream", err, text)
	}
	if r := b.do("HEAD", "/api/version", "", ""); r.status != 200 {
		t.Errorf("a later request on the connection: %d, want 200", r.status)
	}
}
