// Package tracing sends spans to an OpenTelemetry collector (OTLP over HTTP). The code that starts a span sets its content.
//
// It never delays a request: an ended span goes into a bounded queue, and is dropped if the queue is full.
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
	queueSpans   = 2048 // spans that may wait for the collector; more are dropped
	batchSpans   = 512
	batchEvery   = 2 * time.Second
	exportTime   = 10 * time.Second // for one batch, including retries
	mostText     = 256              // characters of an attribute, because clients choose the names of models
	mostAnswer   = 64 << 10         // bytes that are read of a collector's answer
	scope        = "ollama-api-service"
	retryFirst   = 500 * time.Millisecond
	retryLongest = 2 * time.Second
)

// Options are the destination and the identity of spans.
type Options struct {
	Endpoint   *url.URL          // of the collector; spans are sent to /v1/traces below it
	Headers    map[string]string // sent with each request, such as a credential
	Service    string            // service.name
	Version    string            // service.version
	Instance   string            // service.instance.id
	Attributes map[string]string // further attributes of the resource
	// Ratio is the fraction of requests that is traced, from 0 to 1.
	Ratio float64
}

// Collector sends spans to a collector. Create it with Open.
type Collector struct {
	provider  *sdk.TracerProvider
	transport *http.Transport
}

// Open does not connect yet. The first batch does.
func Open(ctx context.Context, o Options, log *slog.Logger) (*Collector, error) {
	// Set everything that the library would otherwise read from the environment, because only our own settings may have an effect.
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
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: retryFirst, MaxInterval: retryLongest, MaxElapsedTime: exportTime,
		}))
	if err != nil {
		return nil, fmt.Errorf("the exporter of traces cannot be created: %w", err)
	}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = mostText
	c.provider = sdk.NewTracerProvider(
		sdk.WithResource(about(o)), sdk.WithSampler(sampler(o.Ratio)), sdk.WithRawSpanLimits(limits),
		sdk.WithBatcher(&exporter{Exporter: client, log: log, failed: c.transport.CloseIdleConnections},
			sdk.WithMaxQueueSize(queueSpans), sdk.WithMaxExportBatchSize(batchSpans),
			sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(exportTime)))
	return c, nil
}

// noRedirect sends the credential only to the configured collector.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// about describes the service that the spans are from.
func about(o Options) *resource.Resource {
	var list []attribute.KeyValue
	for k, v := range o.Attributes {
		list = append(list, attribute.String(k, v))
	}
	// If two have one name, the last one is used.
	list = append(list, attribute.String("service.name", o.Service), attribute.String("service.version", o.Version),
		attribute.String("service.instance.id", o.Instance))
	return resource.NewSchemaless(list...)
}

// Tracer returns the tracer for the spans of requests.
func (c *Collector) Tracer() trace.Tracer { return c.provider.Tracer(scope) }

// Close sends the remaining spans until ctx ends. Spans that end later are dropped.
func (c *Collector) Close(ctx context.Context) error {
	defer c.transport.CloseIdleConnections()
	return c.provider.Shutdown(ctx)
}

// sampler traces the given fraction of all requests. A request whose own trace is not recorded gets no span. One whose trace is recorded
// is sampled like all others: its client chooses both the trace ID and the flag, so neither may decide, because otherwise a client could
// have all its requests traced.
func sampler(ratio float64) sdk.Sampler {
	return sdk.ParentBased(sdk.TraceIDRatioBased(ratio), sdk.WithRemoteParentSampled(chance(ratio)))
}

// chance samples at random.
type chance float64

func (c chance) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	decision := sdk.Drop
	if rand.Float64() < float64(c) { //nolint:gosec // sampling is no secret
		decision = sdk.RecordAndSample
	}
	return sdk.SamplingResult{Decision: decision, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
}

func (c chance) Description() string { return fmt.Sprintf("Chance{%v}", float64(c)) }

// exporter logs once when the collector starts to fail and once when it works again.
type exporter struct {
	*otlptrace.Exporter
	log    *slog.Logger
	failed func() // makes the next batch use a new connection, because the collector's name may have another address by now

	mu    sync.Mutex
	since time.Time // start of the failure; zero without one
	lost  int
}

// ExportSpans sends a batch, or drops it: otherwise the queue would grow with every request.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.Exporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil:
		e.failed()
		if e.since.IsZero() {
			e.since = time.Now()
			e.log.Warn("the collector accepts no traces, and they are lost until it does: start it, or check OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS",
				"cause", brief(err))
		}
		e.lost += len(spans)
	case !e.since.IsZero():
		e.log.Info("the collector accepts traces again", "after", time.Since(e.since).Round(time.Second).String(), "spans_lost", e.lost)
		e.since, e.lost = time.Time{}, 0
	}
	return nil
}

// brief returns an error on one line, limited in length because it may contain the collector's answer.
func brief(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	return text[:min(len(text), 300)]
}
