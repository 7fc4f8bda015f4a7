// Package tracing sends spans to an OpenTelemetry collector (OTLP over HTTP). Who makes a span says what is in it.
//
// Nothing here holds up a request: an ended span goes into a queue of bounded length, and is dropped where that is full.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"ollama-api-service/internal/dial"
)

const (
	queueSpans   = 2048 // that wait for the collector; more are dropped
	batchSpans   = 512
	batchEvery   = 2 * time.Second
	exportTime   = 10 * time.Second // for one batch, tries included
	mostText     = 256              // characters of an attribute: clients choose the names of models
	mostAnswer   = 64 << 10         // bytes of a collector's answer that are read
	scope        = "ollama-api-service"
	retryFirst   = 500 * time.Millisecond
	retryLongest = 2 * time.Second
)

// Options say where spans go.
type Options struct {
	Endpoint   *url.URL          // of the collector; spans go to /v1/traces below it
	Headers    map[string]string // sent along: a collector's credential
	Service    string            // service.name
	Version    string            // service.version
	Instance   string            // service.instance.id
	Attributes map[string]string // of the resource, beside those
	// Ratio is the part of requests that is traced, from 0 to 1.
	Ratio float64
}

// Collector is where spans go. Open makes one.
type Collector struct {
	provider  *sdk.TracerProvider
	transport *http.Transport
}

// Open connects to nobody: the first batch does.
func Open(ctx context.Context, o Options, log *slog.Logger) (*Collector, error) {
	// What the environment says to the library is said here too, for only our own settings may have an effect.
	c := &Collector{transport: http.DefaultTransport.(*http.Transport).Clone()}
	c.transport.MaxIdleConnsPerHost = 1
	c.transport.DialContext = dial.Context
	c.transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: exportTime, PingTimeout: exportTime}
	client, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(o.Endpoint.JoinPath("v1", "traces").String()),
		otlptracehttp.WithHeaders(o.Headers),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: c.transport, Timeout: exportTime, CheckRedirect: noRedirect}),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithTimeout(exportTime),
		otlptracehttp.WithMaxResponseSize(mostAnswer),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: retryFirst, MaxInterval: retryLongest, MaxElapsedTime: exportTime}))
	if err != nil {
		return nil, fmt.Errorf("the exporter of traces cannot be made: %w", err)
	}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = mostText
	c.provider = sdk.NewTracerProvider(
		sdk.WithResource(about(o)), sdk.WithSampler(sampler(o.Ratio)), sdk.WithRawSpanLimits(limits),
		sdk.WithBatcher(&exporter{Exporter: client, log: log, failed: c.transport.CloseIdleConnections}, sdk.WithMaxQueueSize(queueSpans), sdk.WithMaxExportBatchSize(batchSpans),
			sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(exportTime)))
	return c, nil
}

// noRedirect keeps the credential with the collector that it is for.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// about says who the spans are from.
func about(o Options) *resource.Resource {
	var list []attribute.KeyValue
	for k, v := range o.Attributes {
		list = append(list, attribute.String(k, v))
	}
	// Of two with one name the last stands.
	list = append(list, attribute.String("service.name", o.Service), attribute.String("service.version", o.Version),
		attribute.String("service.instance.id", o.Instance))
	return resource.NewSchemaless(list...)
}

// Tracer makes the spans of requests.
func (c *Collector) Tracer() trace.Tracer { return c.provider.Tracer(scope) }

// Close sends what waits, at the longest until ctx ends. Spans that end later are dropped.
func (c *Collector) Close(ctx context.Context) error {
	defer c.transport.CloseIdleConnections()
	return c.provider.Shutdown(ctx)
}

// sampler traces the given part of all requests. A caller whose own trace is not recorded gets no span. One whose trace is
// recorded is a candidate like every other: it chooses the trace's id as well as the flag, so neither may decide, or any key
// could have every request of its own traced.
func sampler(ratio float64) sdk.Sampler {
	return sdk.ParentBased(sdk.TraceIDRatioBased(ratio), sdk.WithRemoteParentSampled(chance(ratio)))
}

// chance samples by our own dice.
type chance float64

func (c chance) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	decision := sdk.Drop
	if rand.Float64() < float64(c) { //nolint:gosec // sampling is no secret
		decision = sdk.RecordAndSample
	}
	return sdk.SamplingResult{Decision: decision, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
}

func (c chance) Description() string { return fmt.Sprintf("Chance{%v}", float64(c)) }

// exporter logs once when a collector begins to fail and once when it is there again.
type exporter struct {
	*otlptrace.Exporter
	log    *slog.Logger
	failed func() // the next batch gets a new connection: the collector's name may lead elsewhere by now

	mu    sync.Mutex
	since time.Time // of the failure; zero while all is well
	lost  int
}

// ExportSpans sends a batch, or loses it: what waited for the collector would grow with every request.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.Exporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil:
		e.failed()
		if e.since.IsZero() {
			e.since = time.Now()
			e.log.Warn("the collector takes no traces, and they are lost until it does: start it, or look at OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS",
				"cause", brief(err))
		}
		e.lost += len(spans)
	case !e.since.IsZero():
		e.log.Info("the collector takes traces again", "after", time.Since(e.since).Round(time.Second).String(), "spans_lost", e.lost)
		e.since, e.lost = time.Time{}, 0
	}
	return nil
}

// brief is an error in a line: a collector's own answer may be in it.
func brief(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	return text[:min(len(text), 300)]
}
