package tracing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"ollama-api-service/internal/test/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, to string, ratio float64, log io.Writer) *Collector {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), Options{
		Endpoint: u, Headers: map[string]string{"authorization": "Bearer canary"}, Service: "gateway", Version: "1.2.3", Instance: "one",
		Attributes: map[string]string{"deployment.environment.name": "test", "service.version": "overruled"}, Ratio: ratio,
	}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func TestSpansReachTheCollector(t *testing.T) {
	// The library's environment variables have no effect.
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-from=environment")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	collector := otlptest.Start(t)
	c := open(t, collector.URL+"/", 1, io.Discard)
	ctx, parent := c.Tracer().Start(t.Context(), "outer")
	_, child := c.Tracer().Start(ctx, "inner", trace.WithAttributes(attribute.String("long", strings.Repeat("x", 1000))))
	child.End()
	parent.End()
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spans := collector.Spans()
	if len(spans) != 2 || spans[0].Name != "inner" || spans[0].Parent != spans[1].ID || spans[0].TraceID != spans[1].TraceID {
		t.Fatalf("%+v, want 2 of them, %q, %v, %v", spans, "inner", spans[1].ID, spans[1].TraceID)
	}
	if n := len(spans[0].Attributes["long"].(string)); n != mostText {
		t.Errorf("an attribute of %d characters, want %v", n, mostText)
	}
	want := map[string]any{"service.name": "gateway", "service.version": "1.2.3", "service.instance.id": "one", "deployment.environment.name": "test"}
	if fmt.Sprint(spans[0].Of) != fmt.Sprint(want) {
		t.Errorf("the resource is %v, want %v", spans[0].Of, want)
	}
	if h := collector.Headers()[0]; h.Get("Authorization") != "Bearer canary" || h.Get("Content-Encoding") != "gzip" || h.Get("X-From") != "" {
		t.Errorf("headers %v, want %q, %q, none", h, "Bearer canary", "gzip")
	}
}

// A client must not decide whether it is traced: neither with the flag nor with an ID that a sampler by ID would choose.
func TestTheRatioHoldsForCallersToo(t *testing.T) {
	const rounds = 4000
	for _, c := range []struct {
		name       string
		parent     trace.TraceFlags
		none       bool
		ratio      float64
		least, top int
	}{
		{"a tenth of requests without a trace", 0, true, .1, 300, 500},
		{"a tenth of requests with a recorded trace", trace.FlagsSampled, false, .1, 300, 500},
		{"none", trace.FlagsSampled, false, 0, 0, 0},
		{"all", trace.FlagsSampled, false, 1, rounds, rounds},
		{"a request whose trace is not recorded", 0, false, 1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			collector := open(t, "http://127.0.0.1:1", c.ratio, io.Discard)
			tracer, traced := collector.Tracer(), 0
			for range rounds {
				ctx := t.Context()
				if !c.none {
					ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
						TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{1}, TraceFlags: c.parent, Remote: true, // an ID that every ratio samples
					}))
				}
				if _, span := tracer.Start(ctx, "x"); span.IsRecording() {
					traced++
				}
			}
			if traced < c.least || traced > c.top {
				t.Errorf("%d of %d are traced, want %d to %d", traced, rounds, c.least, c.top)
			}
		})
	}
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A collector that does not answer blocks no request, and only the queue waits for it. Close waits for it as long as its context allows.
func TestACollectorThatHangs(t *testing.T) {
	collector := otlptest.Start(t)
	hold := make(chan struct{})
	collector.Hold(hold)
	defer close(hold)
	c := open(t, collector.URL, 1, io.Discard)
	tracer := c.Tracer()
	start := time.Now()
	for range 20 * queueSpans {
		_, span := tracer.Start(t.Context(), "x")
		span.End()
	}
	if d := time.Since(start); d > exportTime/2 {
		t.Errorf("the spans took %v, so they waited for the collector, want at most %v", d, exportTime/2)
	}
	last, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start = time.Now()
	if err := c.Close(last); err == nil || time.Since(start) > exportTime/2 {
		t.Errorf("closed with %v after %v, want an error, at most %v", err, time.Since(start), exportTime/2)
	}
}

// One log line when the collector starts to fail, one when it works again, with the number of lost spans.
func TestACollectorThatRefuses(t *testing.T) {
	collector := otlptest.Start(t)
	collector.Refuse(401)
	log := &lines{}
	c := open(t, collector.URL, 1, log)
	send := func() {
		t.Helper()
		_, span := c.Tracer().Start(t.Context(), "x")
		span.End()
		if err := c.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	send()
	send()
	collector.Refuse(0)
	send()
	text := log.String()
	if strings.Count(text, "accepts no traces") != 1 || strings.Count(text, "accepts traces again") != 1 || !strings.Contains(text, "spans_lost=2") || strings.Contains(text, "canary") {
		t.Errorf("the log is\n%s", text)
	}
	if n := len(collector.Spans()); n != 1 {
		t.Errorf("%d spans arrived, want 1", n)
	}
}
