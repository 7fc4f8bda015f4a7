package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// versions runs a test once for each version of HTTP.
func versions(t *testing.T, f func(t *testing.T, http2 bool)) {
	t.Run("HTTP 1.1", func(t *testing.T) { f(t, false) })
	t.Run("HTTP 2", func(t *testing.T) { f(t, true) })
}

// until waits for what happens in another goroutine without telling, and returns how long it took.
func (b *bed) until(what string, yes func() bool) time.Duration {
	b.t.Helper()
	from := time.Now()
	for !yes() {
		if time.Since(from) > 15*time.Second {
			b.t.Fatalf("%s: not within 15 s, want at most %v", what, 15*time.Second)
		}
		<-time.After(time.Millisecond)
	}
	return time.Since(from)
}

// leave starts a request and returns what ends it from the client's side, as closing a window does.
func (b *bed) leave(path, key, body string, firstBytes bool) (leave func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	came, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		resp, err := b.client.Do(b.request("POST", path, key, body).WithContext(ctx))
		if err != nil {
			return
		}
		defer resp.Body.Close()
		if _, err := resp.Body.Read(make([]byte, 10)); err == nil {
			close(came)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}()
	if firstBytes {
		select {
		case <-came:
		case <-over:
			b.t.Error("the answer ended before it had begun")
		}
	}
	return func() { cancel(); <-over }
}

// A client that leaves frees what it held, wherever its request is: upstream's connection is closed, which is how Ollama stops, and
// the slot is the next one's. The bounds are far above what was promised: a test machine may be busy. What was measured is logged.
func TestClientThatLeaves(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		b := start(t, setup{slots: 1, http2: http2})
		b.server.LeaveWithin(50 * time.Millisecond)
		key, _ := b.key(`{"name":"leaver","role":"user","rate_limit":null}`)
		stats := 0.0
		for _, f := range flows() {
			for _, c := range []struct {
				name   string
				answer ollamatest.Answer
				inside bool
				bound  time.Duration
			}{
				{"in the stream", ollamatest.Answer{Raw: f.wire(), Fault: ollamatest.Hang, FaultAt: f.behind(3)}, true, 2 * time.Second},
				{"before the header", ollamatest.Answer{Fault: ollamatest.Hang}, false, 3 * time.Second},
				{"behind the header", ollamatest.Answer{Raw: f.wire(), Fault: ollamatest.Hang, FaultAt: len(f.head())}, false, 3 * time.Second},
			} {
				b.ollama.Script("POST", f.path, c.answer)
				n := len(b.ollama.RequestsTo("POST", f.path))
				leave := b.leave(f.path, key, fmt.Sprintf(f.request, "x"), c.inside)
				r := b.ollama.WaitRequestTo(n+1, "POST", f.path)
				from := time.Now()
				leave()
				r.WaitClosed()
				took := time.Since(from)
				free := b.until("the slot is free", func() bool { return b.sched.Snapshot().InFlight == 0 })
				if took > c.bound || free > c.bound {
					t.Errorf("%s, %s: upstream was closed after %v, and the slot free %v later, want at most %v, at most %v", f.name, c.name, took, free, c.bound, c.bound)
				}
				t.Logf("%s, %s: upstream closed after %v", f.name, c.name, took.Round(10*time.Microsecond))
				stats++
			}
		}
		b.until("the rows are booked", func() bool {
			o := b.stats(key)["requests_by_outcome"].(map[string]any)
			return o["client_gone"] == stats
		})
	})
}

// Who leaves while waiting gives its place back, and Ollama never hears of it.
func TestClientThatLeavesTheQueue(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		for name, heartbeat := range map[string]time.Duration{"silent": 0, "with heartbeats": 5 * time.Millisecond} {
			b := start(t, setup{slots: 1, http2: http2, change: func(o *server.Options) { o.Heartbeat = heartbeat }})
			key, _ := b.key(`{"name":"leaver","role":"user","rate_limit":10}`)
			b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Fault: ollamatest.Hang})
			end := b.leave("/api/generate", key, `{"model":"tiny","prompt":"x"}`, false)
			b.ollama.WaitRequestTo(1, "POST", "/api/generate")
			for _, f := range flows() {
				leave := b.leave(f.path, key, fmt.Sprintf(f.request, "x"), heartbeat > 0 && f.name != "native")
				b.until("it waits", func() bool { return b.sched.Snapshot().Waiting == 1 })
				from := time.Now()
				leave()
				b.until("its place is free", func() bool { return b.sched.Snapshot().Waiting == 0 })
				if took := time.Since(from); took > 2*time.Second {
					t.Errorf("%s, %s: its place was free after %v, want at most %v", name, f.name, took, 2*time.Second)
				} else {
					t.Logf("%s, %s: its place was free after %v", name, f.name, took.Round(10*time.Microsecond))
				}
				if n := len(b.ollama.RequestsTo("POST", f.path)); n != 0 {
					t.Errorf("%s: Ollama was asked %d times, want 0", f.name, n)
				}
			}
			end()
			b.until("the slot is free", func() bool { return b.sched.Snapshot().InFlight == 0 })
			if l := b.stats(key)["limits"].(map[string]any); l["remaining"] != 9.0 {
				t.Errorf("who left the queue was charged: %v, want %v", l, 9.0)
			}
		}
	})
}

// A client that takes nothing of its answer, or a byte now and then, is cut, and the slot and the upstream's connection are free.
func TestClientThatHardlyReadsIsCut(t *testing.T) {
	for name, pause := range map[string]time.Duration{"nothing": time.Hour, "a byte now and then": 20 * time.Millisecond} {
		versions(t, func(t *testing.T, http2 bool) {
			b := start(t, setup{slots: 1, http2: http2})
			b.server.CutAfter(100 * time.Millisecond)
			key := b.user()
			for i, f := range flows()[:2] { // one of each framing
				wire := f.head() + strings.Repeat(strings.TrimPrefix(strings.TrimSuffix(f.wire(), f.closing()), f.head()), 3000)
				b.ollama.Script("POST", f.path, ollamatest.Answer{Raw: wire})
				resp := b.open(f.path, key, fmt.Sprintf(f.request, "x"))
				var reader sync.WaitGroup
				over := make(chan struct{})
				reader.Go(func() {
					for one := make([]byte, 1); ; {
						select {
						case <-time.After(pause):
						case <-over:
							return
						}
						if _, err := resp.Body.Read(one); err != nil {
							return
						}
					}
				})
				b.ollama.WaitRequestTo(1, "POST", f.path).WaitClosed()
				b.until("the slot is free", func() bool { return b.sched.Snapshot().InFlight == 0 })
				close(over)
				reader.Wait()
				resp.Body.Close()
				b.until(name+" of "+f.name+" is booked", func() bool {
					o := b.stats(key)["requests_by_outcome"].(map[string]any)
					return o["client_gone"] == float64(i+1)
				})
			}
		})
	}
}

// behind is where the wire stands behind n records.
func (f *flow) behind(n int) int {
	at := len(f.head())
	for _, record := range f.open[:n] {
		at += len(fmt.Sprintf("%x\r\n%s\r\n", len(record), record))
	}
	return at
}

// closing are the terminal records and the end of the framing, as they stand on the wire.
func (f *flow) closing() string {
	var b strings.Builder
	for _, record := range f.end {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(record), record)
	}
	return b.String() + "0\r\n\r\n"
}

// What fails behind a heartbeat is an event of the stream, whatever it is; a native stream hears no heartbeat and keeps its status.
func TestEveryFailureBehindAHeartbeat(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	for _, c := range []struct {
		name, says, code string
		status           int
		with             setup
		answer           ollamatest.Answer
		occupied         bool
	}{
		{"no slot becomes free", "no slot became free within 1s: try again later", "queue_timeout", 503, setup{slots: 1, maxWait: 600 * time.Millisecond}, ollamatest.Answer{}, true},
		{"no header comes", noAnswer, "timeout", 504, setup{slots: 9, change: func(o *server.Options) { o.FirstByte = 600 * time.Millisecond }}, ollamatest.Answer{Fault: ollamatest.Hang}, false},
		{"Ollama breaks off", brokeOff, "upstream_error", 502, setup{slots: 9}, ollamatest.Answer{Fault: ollamatest.Reset, FaultAt: 30}, false},
		{"Ollama is busy", "server busy", "upstream_error", 503, setup{slots: 9}, ollamatest.Answer{Status: 503, Body: `{"error":"server busy"}`}, false},
		{"a page of HTML", "the Ollama server answered 200 and no stream: try again", "upstream_error", 502, setup{slots: 9}, ollamatest.Answer{Body: `<html>`}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := c.with.change
			c.with.change = func(o *server.Options) {
				o.Heartbeat = 10 * time.Millisecond
				if change != nil {
					change(o)
				}
			}
			b := start(t, c.with)
			key := b.user()
			if c.occupied {
				b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Fault: ollamatest.Hang})
				defer b.leave("/api/generate", key, `{"model":"tiny","prompt":"x"}`, false)()
				b.ollama.WaitRequestTo(1, "POST", "/api/generate")
			}
			for _, f := range flows() {
				gate := make(chan struct{})
				answer := c.answer
				answer.HeaderGate = gate
				b.ollama.Script("POST", f.path, answer, answer)
				if f.name == "native" {
					close(gate)
					if r := b.do("POST", f.path, key, fmt.Sprintf(f.request, "x")); r.status != c.status || r.err != nil || strings.Contains(r.body, "waiting") {
						t.Errorf("%s: %d, %v %s, want %v, nil, no %q", f.name, r.status, r.err, r.body, c.status, "waiting")
					}
					continue
				}
				resp := b.open(f.path, key, fmt.Sprintf(f.request, "x")) // only the heartbeat has arrived
				close(gate)
				text, err := readAll(resp)
				events := slices.DeleteFunc(strings.SplitAfter(text, "\n\n"), func(event string) bool {
					first, _, _ := strings.Cut(event, "\n")
					return beats(first)
				})
				r := reply{resp.StatusCode, resp.Header, strings.Join(events, ""), err}
				if first, _, _ := strings.Cut(text, "\n"); !beats(first) {
					t.Errorf("%s: no heartbeat came first: %s", f.name, text)
				}
				if f.name == "messages" && c.code == "queue_timeout" {
					if !strings.Contains(r.body, `"overloaded_error","message":"`+c.says) || r.err != nil {
						t.Errorf("%v, %s", r.err, r.body)
					}
					continue
				}
				if complaint := f.endsLoudly(r, "", c.code, c.says); complaint != "" {
					t.Errorf("%s: %s, want none", f.name, complaint)
				}
			}
		})
	}
}

// A client that leaves before Ollama has counted pays for what Ollama has most likely done: its whole prompt with what the template adds,
// and as many tokens as fit into the time. Ollama keeps a tool call back until it is whole, so nothing may have passed.
func TestAClientThatLeavesPaysForTheTime(t *testing.T) {
	b := start(t, setup{})
	teacher, _ := b.key(`{"name":"teacher","role":"user"}`)
	// A nanosecond for each token of an answer, and a template of 40 tokens.
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Body: `{"model":"tiny:latest","message":{"role":"assistant","content":"x"},"done":true,` +
		`"done_reason":"stop","total_duration":2000000,"load_duration":1,"prompt_eval_count":41,"prompt_eval_duration":1000,"eval_count":100,"eval_duration":100}`})
	if r := b.do("POST", "/api/chat", teacher, `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"hi"}]}`); r.status != 200 {
		t.Fatalf("%d %s, want 200", r.status, r.body)
	}
	for _, stream := range []bool{true, false} {
		key, preview := b.key(fmt.Sprintf(`{"name":"leaves %v","role":"user","tokens_per_day":10000}`, stream))
		b.ollama.Script("POST", "/api/chat", ollamatest.Answer{HeaderGate: make(chan struct{})})
		n := len(b.ollama.RequestsTo("POST", "/api/chat"))
		leave := b.leave("/api/chat", key, fmt.Sprintf(`{"model":"tiny","stream":%v,"messages":[{"role":"user","content":"hi"}],"options":{"num_predict":300}}`, stream), false)
		b.ollama.WaitRequestTo(n+1, "POST", "/api/chat")
		leave()
		b.until("its row", func() bool {
			return strings.Contains(b.do("GET", "/api/admin/requests?key="+preview, adminSecret, "").body, `"outcome":`)
		})
		row := b.row(preview)
		// The key has read no answer, so each byte of its two may be a token.
		if row["prompt_tokens"] != 44. || row["completion_tokens"] != 300. || row["estimated"] != true {
			t.Errorf("stream %v: booked %v and %v tokens, estimated %v, want 44 and 300, estimated", stream, row["prompt_tokens"], row["completion_tokens"], row["estimated"])
		}
	}
}

// An answer that is not streamed was generated to its end before its first byte, so a client that leaves while it is passed on has used
// it. The rest is read for the usage; if none comes, the key pays for the time.
func TestALongWholeAnswerThatIsLeftIsCharged(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	text := strings.Repeat("all work and no play ", 1<<20)
	for _, c := range []struct {
		path, body, answer string
		fault              ollamatest.Fault
		estimated          bool
	}{
		{"/api/generate", `{"model":"tiny","prompt":"hello","stream":false}`, `{"model":"tiny","created_at":"2026-11-25T09:30:00Z","response":"` + text +
			`","done":true,"done_reason":"stop","prompt_eval_count":20,"eval_count":9000,"eval_duration":1000000000}`, 0, false},
		{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"hello"}]}`, `{"id":"c","object":"chat.completion","model":"tiny",` +
			`"choices":[{"index":0,"message":{"role":"assistant","content":"` + text + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":9000,"total_tokens":9020}}`, 0, false},
		{"/api/generate", `{"model":"tiny","prompt":"hello","stream":false}`, `{"response":"` + text + `"}`, ollamatest.Close, true},
	} {
		b := start(t, setup{})
		b.ollama.Script(http.MethodPost, c.path, ollamatest.Answer{Body: c.answer, Fault: c.fault, FaultAt: len(c.answer) - 10, Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}})
		resp, err := b.client.Do(b.request(http.MethodPost, c.path, adminSecret, c.body))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		var rows []any
		b.until("the row", func() bool {
			rows = b.do("GET", "/api/admin/requests", adminSecret, "").json(t)["requests"].([]any)
			return len(rows) == 1
		})
		row := rows[0].(map[string]any)
		if row["outcome"] != "client_gone" || row["estimated"] != c.estimated || !c.estimated && (row["completion_tokens"] != 9000. || row["prompt_tokens"] != 20.) {
			t.Errorf("%s: an answer of 9,000 tokens is booked as %v with %v and %v tokens, estimated %v", c.path, row["outcome"], row["prompt_tokens"], row["completion_tokens"], row["estimated"])
		}
		b.stop()
	}
}

// Ollama evaluates a prompt to its end also if the client leaves, so the request keeps its slot until the first record: the next request
// would wait inside Ollama, and its key would pay for that.
func TestALeftPromptKeepsItsSlot(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		b := start(t, setup{slots: 1, http2: http2})
		b.server.LeaveWithin(time.Hour)
		leaver, _ := b.key(`{"name":"leaver","role":"user"}`)
		other, _ := b.key(`{"name":"other","role":"user"}`)
		evaluated := make(chan struct{})
		b.ollama.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, HeaderGate: evaluated})
		leave := b.leave("/api/generate", leaver, `{"model":"tiny","prompt":"x"}`, false)
		b.ollama.WaitRequestTo(1, "POST", "/api/generate")
		leave()
		next := b.begin("/api/generate", other, generateTiny)
		b.until("the next request waits", func() bool { return b.sched.Snapshot().Waiting == 1 })
		if n := len(b.ollama.RequestsTo("POST", "/api/generate")); n != 1 {
			t.Errorf("got %d requests at Ollama while the prompt is evaluated, want 1", n)
		}
		close(evaluated)
		if a := next(); a.status != 200 {
			t.Errorf("the next request: got %d %s, want 200", a.status, a.body)
		}
	})
}
