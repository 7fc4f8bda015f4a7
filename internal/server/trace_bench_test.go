package server

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	sdk "go.opentelemetry.io/otel/sdk/trace"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// steps runs everything that tracing does in one streamed chat.
func steps(t trace.Tracer) func() {
	be := backend.New("gpu1", &url.URL{Scheme: "http", Host: "127.0.0.1:11434"}, 4, "", "")
	s := &Server{Options: Options{Reports: Reports{Tracer: t}}}
	x := &exchange{
		r: &http.Request{Method: "POST", Header: http.Header{}}, s: s, arrived: time.Now(), id: "0193",
		sender:      sender{key: &api.Key{}},
		destination: destination{route: &route{method: "POST", template: "/api/chat", purpose: inference, kind: dialect.Chat}},
		reply:       reply{status: 200},
	}
	b := &booking{s: s, x: x, req: &dialect.Request{Stream: true}, lease: &sched.Lease{Backend: be}}
	b.record = api.Record{Admission: api.Admission{Model: "llama3.2:latest", Backend: "gpu1", Streamed: true}, Outcome: api.OutcomeOK, Status: 200, FirstByte: 1}
	x.record = &b.record
	end := []byte(`{"model":"llama3.2","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":120}` + "\n")
	up := &proxy.Request{}
	return func() {
		x.trace = nil
		s.traceRequest(x)
		x.trace.waits()
		x.trace.waited(nil)
		x.trace.sends(b, up)
		x.trace.finished(end)
		x.trace.booked(x, &b.record)
		_ = x.trace.id()
		x.trace.ended(x)
	}
}

func TestTracingThatIsOffCostsNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, steps(nil)); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// The cost of tracing for a streamed chat: with tracing off, with a chat that is not sampled, and with one that is.
func BenchmarkTraceOfARequest(b *testing.B) {
	unchosen := sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	chosen := sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()))
	for _, c := range []struct {
		name string
		t    trace.Tracer
	}{{"off", nil}, {"not chosen", unchosen.Tracer("x")}, {"chosen", chosen.Tracer("x")}} {
		b.Run(c.name, func(b *testing.B) {
			run := steps(c.t)
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	}
}
