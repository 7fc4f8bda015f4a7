package server_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
	"ollama-api-service/internal/test/otlptest"
	"ollama-api-service/internal/tracing"
)

// traced is a bed that traces all its requests.
type traced struct {
	*bed
	collector *otlptest.Collector
	to        *tracing.Collector
}

func startTraced(t *testing.T, with setup) *traced {
	t.Helper()
	tb := &traced{collector: otlptest.Start(t)}
	u, err := url.Parse(tb.collector.URL)
	if err == nil {
		tb.to, err = tracing.Open(t.Context(), tracing.Options{Endpoint: u, Service: "x", Ratio: 1}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	change := with.change
	with.change = func(o *server.Options) {
		o.Tracer = tb.to.Tracer()
		if change != nil {
			change(o)
		}
	}
	tb.bed = start(t, with)
	return tb
}

// end stops the server, which ends every span, and returns the spans.
func (b *traced) end() []otlptest.Span {
	b.t.Helper()
	b.stop()
	if err := b.to.Close(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return b.collector.Spans()
}

// of returns the span of the request with this id, and its child spans by name.
func spansOf(t *testing.T, all []otlptest.Span, requestID string) (request otlptest.Span, children map[string]otlptest.Span) {
	t.Helper()
	children = map[string]otlptest.Span{}
	for _, s := range all {
		if s.Kind == "SERVER" && s.Attributes["ollama_api.request_id"] == requestID {
			request = s
		}
	}
	if request.ID == "" {
		t.Fatalf("no span of request %s, want a text", requestID)
	}
	for _, s := range all {
		if s.Parent == request.ID {
			if s.TraceID != request.TraceID || s.Start.Before(request.Start) || s.End.After(request.End) {
				t.Errorf("the span %s is not within its request's time", s.Name)
			}
			children[s.Name] = s
		}
	}
	return request, children
}

func sameAttributes(t *testing.T, s otlptest.Span, want map[string]any) {
	t.Helper()
	got := maps.Clone(s.Attributes)
	for _, name := range []string{"ollama_api.request_id", "gen_ai.response.time_to_first_chunk", "server.port"} {
		delete(got, name) // the test checks them separately
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has\n%v, want\n%v", s.Name, got, want)
	}
}

func TestARequestIsThreeSpans(t *testing.T) {
	for _, c := range []struct {
		path, recording, name string
		want                  map[string]any
	}{
		{"/api/chat", "chat", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": false, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/api/chat", "chat-stream", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/api/generate", "generate-stream", "text_completion tiny:latest", map[string]any{"gen_ai.operation.name": "text_completion", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/api/embed", "embed", "embeddings tiny:latest", map[string]any{"gen_ai.operation.name": "embeddings", "gen_ai.request.stream": false}},
		{"/v1/chat/completions", "v1-chat", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": false, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/v1/chat/completions", "v1-chat-stream-usage", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/v1/completions", "v1-completions-stream-usage", "text_completion tiny:latest", map[string]any{"gen_ai.operation.name": "text_completion", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"length"}}},
		{"/v1/embeddings", "v1-embeddings", "embeddings tiny:latest", map[string]any{"gen_ai.operation.name": "embeddings", "gen_ai.request.stream": false}},
		{"/v1/responses", "v1-responses", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": false, "gen_ai.response.finish_reasons": []any{"completed"}}},
		{"/v1/responses", "v1-responses-stream", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"completed"}}},
		{"/v1/messages", "v1-messages", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": false, "gen_ai.response.finish_reasons": []any{"max_tokens"}}},
		{"/v1/messages", "v1-messages-stream", "chat tiny:latest", map[string]any{"gen_ai.operation.name": "chat", "gen_ai.request.stream": true, "gen_ai.response.finish_reasons": []any{"max_tokens"}}},
	} {
		t.Run(c.recording, func(t *testing.T) {
			b := startTraced(t, setup{})
			key := b.user()
			b.ollama.Script("POST", c.path, ollamatest.Answer{Recording: c.recording})
			r := b.do("POST", c.path, key, string(ollamatest.RecordedRequest(c.recording)))
			row := b.do("GET", "/api/admin/requests?limit=1", adminSecret, "").json(t)["requests"].([]any)[0].(map[string]any)
			request, children := spansOf(t, b.end(), r.header.Get("X-Request-Id"))
			if request.Name != "POST "+c.path || request.Parent != "" || request.Status != "UNSET" || len(children) != 2 {
				t.Errorf("%+v with %v", request, children)
			}
			sameAttributes(t, request, map[string]any{
				"http.request.method": "POST", "http.route": c.path, "http.response.status_code": 200, "ollama_api.outcome": "ok", "ollama_api.backend": "gpu1",
			})
			wait, serving := children["wait for a slot"], children[c.name]
			if wait.Kind != "INTERNAL" || wait.Status != "UNSET" || serving.Kind != "CLIENT" || serving.Status != "UNSET" || serving.Start.Before(wait.End) {
				t.Fatalf("%+v\n%+v", wait, serving)
			}
			maps.Copy(c.want, map[string]any{
				"http.request.method": "POST", "http.response.status_code": 200, "server.address": "127.0.0.1", "ollama_api.outcome": "ok", "ollama_api.backend": "gpu1",
				"gen_ai.provider.name": "ollama", "gen_ai.request.model": "tiny:latest", "gen_ai.response.model": "tiny:latest",
				"gen_ai.usage.input_tokens": row["prompt_tokens"], "gen_ai.usage.output_tokens": row["completion_tokens"],
			})
			sameAttributes(t, serving, c.want)
			first, streamed := serving.Attributes["gen_ai.response.time_to_first_chunk"].(float64)
			if streamed != c.want["gen_ai.request.stream"].(bool) || first < 0 || first > serving.End.Sub(serving.Start).Seconds() {
				t.Errorf("got the first piece after %v s", first)
			}
		})
	}
}

func TestSpansOfWhatFails(t *testing.T) {
	b := startTraced(t, setup{slots: 1, maxQueue: 1, maxWait: time.Millisecond})
	key, _ := b.key(`{"name":"user","role":"user","rate_limit":4}`)
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 1, Gate: gate})
	held := make(chan reply)
	go func() { held <- b.do("POST", "/api/chat", key, `{"model":"tiny"}`) }()
	b.ollama.WaitRequestTo(1, "POST", "/api/chat")
	waited := b.do("POST", "/api/chat", key, `{"model":"tiny"}`)
	close(gate)
	<-held
	b.ollama.Script("POST", "/v1/chat/completions", ollamatest.Answer{Tokens: 3, NoTerminal: true})
	cut := b.do("POST", "/v1/chat/completions", key, `{"model":"tiny","messages":[{"role":"user","content":"four chars"}],"stream":true}`)
	b.ollama.Script("POST", "/api/embed", ollamatest.Answer{Status: 404, Body: `{"error":"model \"nosuch\" not found"}`})
	unknown := b.do("POST", "/api/embed", key, `{"model":"nosuch","input":"x"}`)
	b.do("POST", "/api/chat", key, `{"model":"tiny"}`)
	limited := b.do("POST", "/api/chat", key, `{"model":"tiny"}`)
	list := b.do("GET", "/api/tags", key, "")
	b.do("GET", "/api/tags", "oas_0123456789_01234567890123456789012345678901abcdef", "")
	b.do("GET", "/nowhere/at/all", key, "")
	all := b.end()

	for _, c := range []struct {
		of                       reply
		name, status, code       string
		children                 int
		child, itsStatus, itCode string
	}{
		{waited, "POST /api/chat", "ERROR", "queue_timeout", 1, "wait for a slot", "ERROR", "queue_timeout"},
		{cut, "POST /v1/chat/completions", "ERROR", "upstream_error", 2, "chat tiny:latest", "ERROR", "upstream_error"},
		{unknown, "POST /api/embed", "UNSET", "<nil>", 2, "embeddings nosuch:latest", "ERROR", "not_found"},
		{limited, "POST /api/chat", "UNSET", "rate_limited", 0, "", "", "<nil>"},
		{list, "GET /api/tags", "UNSET", "<nil>", 0, "", "", "<nil>"},
	} {
		request, children := spansOf(t, all, c.of.header.Get("X-Request-Id"))
		child := children[c.child]
		if request.Name != c.name || request.Status != c.status || fmt.Sprint(request.Attributes["error.type"]) != c.code || len(children) != c.children ||
			child.Status != c.itsStatus || fmt.Sprint(child.Attributes["error.type"]) != c.itCode {
			t.Errorf("%+v\n%+v", request, children)
		}
	}
	_, children := spansOf(t, all, cut.header.Get("X-Request-Id"))
	if a := children["chat tiny:latest"].Attributes; a["ollama_api.tokens_estimated"] != true || a["gen_ai.usage.output_tokens"] != int64(3) {
		t.Errorf("a cut stream has %v, want true, %v", a, int64(3))
	}
	requests := 0
	for _, s := range all {
		if s.Kind == "SERVER" {
			requests++
		}
	}
	if requests != 7 {
		t.Errorf("got %d requests with spans; requests without a key and about the service must have none, want 7", requests)
	}
}

func TestWhatClientsWriteIsInNoSpan(t *testing.T) {
	b := startTraced(t, setup{})
	key, preview := b.key(`{"name":"canary-name","role":"user"}`)
	req := b.request("POST", "/k/"+key+"/api/chat?q=canary-query", "", `{"model":"tiny","messages":[{"role":"user","content":"canary-prompt"}]}`)
	for name, value := range map[string]string{
		"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate": "vendor=canary-state", "Baggage": "a=canary-baggage",
		"User-Agent": "canary-agent", "X-Request-Id": "canary-id", "Host": "canary-host",
	} {
		req.Header.Set(name, value)
	}
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Chunks: []string{`{"message":{"content":"canary-answer"},"done":true,"done_reason":"canary-reason"}` + "\n"}})
	if r := b.send(req); r.status != 200 {
		t.Fatal(r.status, r.body)
	}
	spans := b.end()
	text := fmt.Sprint(spans)
	if len(spans) != 3 || strings.Contains(text, "canary") || strings.Contains(text, preview) || strings.Contains(text, "oas_") {
		t.Errorf("%s, want 3 of them, no %q, no %v, no %q", text, "canary", preview, "oas_")
	}
}

// The client's span is the parent of ours. If the setting asks for it, ours is the parent of the upstream's.
func TestATraceGoesOn(t *testing.T) {
	const theirs = "0af7651916cd43dd8448eb211c80319c"
	for _, c := range []struct {
		parent     []string
		upstream   bool
		spans      int
		trace, own string
	}{
		{[]string{"00-" + theirs + "-b7ad6b7169203331-01"}, true, 3, theirs, "b7ad6b7169203331"},
		{[]string{"00-" + theirs + "-b7ad6b7169203331-01"}, false, 3, theirs, "b7ad6b7169203331"},
		{[]string{"00-" + theirs + "-b7ad6b7169203331-00"}, true, 0, "", ""},
		{[]string{"00-" + strings.ToUpper(theirs) + "-b7ad6b7169203331-01"}, true, 3, "", ""},
		{[]string{"00-" + theirs + "-b7ad6b7169203331-01", "00-" + theirs + "-c7ad6b7169203331-01"}, true, 3, "", ""},
		{[]string{strings.Repeat("0", 5000)}, true, 3, "", ""},
	} {
		b := startTraced(t, setup{change: func(o *server.Options) { o.TraceUpstream = c.upstream }})
		req := b.request("POST", "/api/chat", b.user(), `{"model":"tiny","stream":false}`)
		req.Header["Traceparent"] = c.parent
		r := b.send(req)
		up := b.ollama.WaitRequestTo(1, "POST", "/api/chat")
		logged := strings.Contains(b.logs.String(), `"trace_id":"`)
		spans := b.end()
		if r.status != 200 || len(spans) != c.spans || logged != (c.spans > 0) {
			t.Errorf("%v: %d, %d spans, in the log: %v", c.parent, r.status, len(spans), logged)
			continue
		}
		sent := up.Header.Get("Traceparent")
		if c.spans == 0 {
			if sent != "" {
				t.Errorf("%v: the upstream got %q, want none", c.parent, sent)
			}
			continue
		}
		i := slices.IndexFunc(spans, func(s otlptest.Span) bool { return s.Kind == "SERVER" })
		j := slices.IndexFunc(spans, func(s otlptest.Span) bool { return s.Kind == "CLIENT" })
		if c.trace != "" && spans[i].TraceID != c.trace || c.trace == "" && spans[i].TraceID == theirs || spans[i].Parent != c.own {
			t.Errorf("%v: trace %s, parent %q", c.parent, spans[i].TraceID, spans[i].Parent)
		}
		want := ""
		if c.upstream {
			want = "00-" + spans[j].TraceID + "-" + spans[j].ID + "-01"
		}
		if sent != want {
			t.Errorf("%v: the upstream got %q, want %q", c.parent, sent, want)
		}
		if want != "" && !strings.Contains(b.logs.String(), `"trace_id":"`+spans[i].TraceID+`"`) {
			t.Error("the log has a different trace id")
		}
	}
}

// Without tracing, the client's header has no effect and is not forwarded.
func TestNothingIsTracedWithoutACollector(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.TraceUpstream = true }})
	req := b.request("POST", "/api/chat", b.user(), `{"model":"tiny","stream":false}`)
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if r := b.send(req); r.status != http.StatusOK {
		t.Fatal(r.status, r.body)
	}
	if up := b.ollama.WaitRequestTo(1, "POST", "/api/chat"); up.Header["Traceparent"] != nil || strings.Contains(b.logs.String(), "trace_id") {
		t.Errorf("upstream got %v, want nil, no %q", up.Header, "trace_id")
	}
}
