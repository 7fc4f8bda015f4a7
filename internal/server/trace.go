package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
)

// The names of attributes. Those of HTTP and of generative AI come from OpenTelemetry's semantic conventions (the latter from version
// 1.41, in development); the others are our own. docs/tracing.md explains each. No value is a prompt, an answer, a key or a path.
const (
	attrMethod       = attribute.Key("http.request.method")
	attrRoute        = attribute.Key("http.route")
	attrStatus       = attribute.Key("http.response.status_code")
	attrErrorType    = attribute.Key("error.type")
	attrServer       = attribute.Key("server.address")
	attrPort         = attribute.Key("server.port")
	attrOperation    = attribute.Key("gen_ai.operation.name")
	attrProvider     = attribute.Key("gen_ai.provider.name")
	attrAsked        = attribute.Key("gen_ai.request.model")
	attrStream       = attribute.Key("gen_ai.request.stream")
	attrAnswered     = attribute.Key("gen_ai.response.model")
	attrFinish       = attribute.Key("gen_ai.response.finish_reasons")
	attrFirstChunk   = attribute.Key("gen_ai.response.time_to_first_chunk")
	attrInputTokens  = attribute.Key("gen_ai.usage.input_tokens")
	attrOutputTokens = attribute.Key("gen_ai.usage.output_tokens")
	attrRequestID    = attribute.Key("ollama_api.request_id")
	attrBackend      = attribute.Key("ollama_api.backend")
	attrOutcome      = attribute.Key("ollama_api.outcome")
	attrEstimated    = attribute.Key("ollama_api.tokens_estimated")
)

// requestTrace holds the spans of one request: the request itself, its wait for a slot, and the work of the Ollama server. It is nil if
// the request is not traced. Every method of a nil requestTrace does nothing.
type requestTrace struct {
	tracer  trace.Tracer
	ctx     context.Context // of the request's span
	request trace.Span
	serving trace.Span
	waiting time.Time // when the wait for a slot began
	served  time.Time // when serving began
	reason  string    // why the model stopped
}

// traceRequest begins the span of a request whose key is known: clients without a key must not fill the collector. Requests about the
// service itself get no span.
func (s *Server) traceRequest(x *exchange) {
	if s.Tracer == nil || x.key == nil || x.route.purpose == own {
		return
	}
	ctx := x.r.Context()
	// The gateway reads only this one of the headers that carry a context, because tracestate and baggage are free text.
	if parent := x.r.Header["Traceparent"]; len(parent) == 1 {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent[0]})
	}
	ctx, span := s.Tracer.Start(ctx, x.route.method+" "+x.route.template,
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.arrived))
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attrMethod.String(x.route.method), attrRoute.String(x.route.template), attrRequestID.String(x.id))
	x.trace = &requestTrace{tracer: s.Tracer, ctx: ctx, request: span}
}

// ended ends the request's span.
func (t *requestTrace) ended(x *exchange) {
	if t == nil {
		return
	}
	status := x.loggedStatus()
	t.request.SetAttributes(attrStatus.Int(status))
	if x.err != nil {
		t.request.SetAttributes(attrErrorType.String(string(x.err.Code)))
	}
	if r := x.record; r != nil {
		t.request.SetAttributes(attrOutcome.String(string(r.Outcome)), attrBackend.String(r.Backend))
	}
	// A refusal is not a server error; a stream that broke after its 200 is.
	if status >= 500 || x.record != nil && broke(x.record.Outcome) {
		t.request.SetStatus(codes.Error, "")
	}
	t.request.End()
}

func broke(o api.Outcome) bool {
	return o == api.OutcomeUpstream || o == api.OutcomeTimeout || o == api.OutcomeInterrupted
}

// waits notes that a wait for a slot begins.
func (t *requestTrace) waits() {
	if t != nil {
		t.waiting = time.Now()
	}
}

// waited records the span of the wait for a slot.
func (t *requestTrace) waited(err error) {
	if t == nil {
		return
	}
	_, span := t.tracer.Start(t.ctx, "wait for a slot", trace.WithTimestamp(t.waiting))
	if err != nil {
		span.SetAttributes(attrErrorType.String(string(api.AsError(err).Code)))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// sends begins the span of the Ollama server's work. With TraceUpstream it also sends the span's id to the server.
func (t *requestTrace) sends(b *booking, up *proxy.Request) {
	if t == nil {
		return
	}
	x := b.x
	t.served = time.Now()
	name, attrs := x.route.method+" "+x.route.upstream, make([]attribute.KeyValue, 0, 16)
	server := b.lease.Backend
	attrs = append(attrs, attrServer.String(server.URL.Hostname()), attrBackend.String(server.Name), attrMethod.String(x.route.method))
	if port, err := strconv.Atoi(server.URL.Port()); err == nil {
		attrs = append(attrs, attrPort.Int(port))
	}
	if operation := operations[x.route.kind]; operation != "" {
		asked := b.record.Alias
		if asked == "" {
			asked = b.record.Model
		}
		name = operation + " " + asked
		attrs = append(attrs, attrOperation.String(operation), attrProvider.String("ollama"),
			attrAsked.String(asked), attrStream.Bool(b.req.Stream))
	}
	ctx, span := t.tracer.Start(t.ctx, name,
		trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(t.served), trace.WithAttributes(attrs...))
	t.serving = span
	if x.s.TraceUpstream {
		header := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, header)
		up.TraceParent = header["traceparent"]
	}
}

// moved ends the span of a server that did not serve the request. The span of the next server begins after it.
func (t *requestTrace) moved(failed error) {
	if t == nil || t.serving == nil {
		return
	}
	if failed != nil {
		t.serving.SetAttributes(attrErrorType.String(string(api.AsError(failed).Code)))
	}
	t.serving.SetStatus(codes.Error, "")
	t.serving.End()
	t.serving = nil
}

// operations maps routes to the operation names of the semantic conventions.
var operations = map[dialect.Kind]string{
	dialect.Chat: "chat", dialect.OpenAIChat: "chat", dialect.OpenAIResponses: "chat", dialect.AnthropicMessages: "chat",
	dialect.Generate: "text_completion", dialect.OpenAICompletions: "text_completion",
	dialect.Embed: "embeddings", dialect.Embeddings: "embeddings", dialect.OpenAIEmbeddings: "embeddings",
}

// finished records why the model stopped, which is in the end of its answer.
func (t *requestTrace) finished(end []byte) {
	if t != nil {
		t.reason = dialect.FinishReason(end)
	}
}

// booked ends the span of the Ollama server's work, with the attributes that the books record.
func (t *requestTrace) booked(x *exchange, r *api.Record) {
	if t == nil || t.serving == nil {
		return
	}
	attrs := append(make([]attribute.KeyValue, 0, 12), attrOutcome.String(string(r.Outcome)))
	if r.ErrorCode != "" {
		attrs = append(attrs, attrErrorType.String(string(r.ErrorCode)))
	}
	if r.Status != 0 {
		attrs = append(attrs, attrStatus.Int(r.Status))
	}
	if operations[x.route.kind] != "" {
		attrs = append(attrs, attrInputTokens.Int64(r.PromptTokens), attrOutputTokens.Int64(r.CompletionTokens))
		if r.Estimated {
			attrs = append(attrs, attrEstimated.Bool(true))
		}
		if good(r.Status) {
			attrs = append(attrs, attrAnswered.String(r.Model))
		}
		if r.Streamed && r.FirstByte > 0 {
			attrs = append(attrs, attrFirstChunk.Float64(x.arrived.Add(r.FirstByte).Sub(t.served).Seconds()))
		}
		if t.reason != "" {
			attrs = append(attrs, attrFinish.StringSlice([]string{t.reason}))
		}
	}
	t.serving.SetAttributes(attrs...)
	if r.Outcome != api.OutcomeOK && r.Outcome != api.OutcomeClientGone && r.Outcome != api.OutcomeCut || r.Status >= http.StatusBadRequest {
		t.serving.SetStatus(codes.Error, "")
	}
	t.serving.End()
}

// id returns the trace's id for the log, or "" if the request is not traced.
func (t *requestTrace) id() string {
	if t == nil {
		return ""
	}
	return t.request.SpanContext().TraceID().String()
}
