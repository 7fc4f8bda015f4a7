package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/otlptest"
)

// The service sends the spans of requests to a collector, at the latest when it stops. They have the real Ollama's token counts.
func TestTraces(t *testing.T) {
	collector := otlptest.Start(t)
	s := serve(t, "OLLAMA_BASE_URL="+ollamaURL+"?name=gpu1", "OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20canary-credential",
		"OTEL_SERVICE_NAME=gateway", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test%20bed")
	user := s.makeKey(t, "")
	r := call(t, "POST", s.URL+"/api/chat", user.Secret, `{"model":"tiny","messages":[{"role":"user","content":"canary-prompt"}],"options":{"num_predict":4}}`).want(t, http.StatusOK)
	call(t, "GET", s.URL+"/k/"+user.Secret+"/api/tags", "", "").want(t, http.StatusOK)
	call(t, "GET", s.URL+"/metrics", s.Admin, "").want(t, http.StatusOK)
	s.stop(t)

	spans := collector.Spans()
	named := map[string]otlptest.Span{}
	for _, span := range spans {
		named[span.Name] = span
	}
	request, serving := named["POST /api/chat"], named["chat tiny:latest"]
	if len(spans) != 4 || request.ID == "" || named["wait for a slot"].Parent != request.ID || serving.Parent != request.ID || named["GET /api/tags"].ID == "" {
		t.Fatalf("%+v", spans)
	}
	want := map[string]any{"gen_ai.usage.output_tokens": int64(4), "gen_ai.response.finish_reasons": []any{"length"}, "gen_ai.operation.name": "chat", "ollama_api.backend": "gpu1"}
	for name, value := range want {
		if fmt.Sprint(serving.Attributes[name]) != fmt.Sprint(value) {
			t.Errorf("%s is %v, want %v", name, serving.Attributes[name], value)
		}
	}
	if request.Attributes["ollama_api.request_id"] != r.Header.Get("X-Request-Id") || !strings.Contains(s.stdout.String(), `"trace_id":"`+request.TraceID+`"`) {
		t.Error("the trace and the log do not have each other's ids")
	}
	of := request.Of
	if of["service.name"] != "gateway" || of["service.version"] != "0.0.0-e2e" || of["deployment.environment.name"] != "test bed" || of["service.instance.id"] == "" {
		t.Errorf("the spans have the resource %v", of)
	}
	if h := collector.Headers()[0].Get("Authorization"); h != "Bearer canary-credential" {
		t.Error("the collector's credential was not sent")
	}
	if text := fmt.Sprint(spans); strings.Contains(text, "canary") || strings.Contains(text, "oas_") {
		t.Errorf("a span contains private data: %s", redact(text))
	}
	if strings.Contains(s.stdout.String(), "canary") {
		t.Error("the log contains the collector's credential or a prompt")
	}
}

// A collector that is down, or accepts connections but never answers, delays no request. It causes one log line, and at most five seconds
// when the service stops.
func TestTracesWithoutTheirCollector(t *testing.T) {
	hangs := otlptest.Start(t)
	hold := make(chan struct{})
	hangs.Hold(hold)
	defer close(hold)
	for name, address := range map[string]string{"away": "http://" + freeAddress(t), "silent": hangs.URL} {
		s := serve(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+address)
		user := s.makeKey(t, "")
		for range 20 {
			call(t, "GET", s.URL+"/api/tags", user.Secret, "").want(t, http.StatusOK)
		}
		if name == "away" {
			poll(t, "a word about the collector", func() bool { return strings.Contains(s.stdout.String(), "accepts no traces") })
		}
		start := time.Now()
		s.stop(t)
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("%s: stopping took %v", name, d)
		}
		if n := strings.Count(s.stdout.String(), "accepts no traces"); name == "away" && n != 1 {
			t.Errorf("%s: got %d log lines, want 1", name, n)
		}
	}
}

// freeAddress returns an address on which no program listens.
func freeAddress(t *testing.T) string { return "127.0.0.1:" + freePort(t) }
