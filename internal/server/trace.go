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

// The names of attributes: those of HTTP and of generative AI are OpenTelemetry's semantic conventions (the latter of version
// 1.41, in development), the rest are ours. docs/tracing.md explains each. No value is a prompt, an answer, a key or a path.
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

// journey is the spans of one request: the request itself, its wait for a slot, and what the Ollama server did. It is nil where
// the request is not traced, and every method of a nil one does nothing.
type journey struct {
	tracer  trace.Tracer
	ctx     context.Context // of the request's span
	request trace.Span
	serving trace.Span
	served  time.Time // when serving began
	reason  string    // why the model stopped
}

// traceRequest begins the span of a request whose key is known: who has no key must not fill the collector. Requests about the
// service itself get none.
func (s *Server) traceRequest(x *exchange) {
	if s.Tracer == nil || x.key == nil || x.route.class == own {
		return
	}
	ctx := x.r.Context()
	// Of the headers that carry a context only this one is read: tracestate and baggage are free text.
	if parent := x.r.Header["Traceparent"]; len(parent) == 1 {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent[0]})
	}
	ctx, span := s.Tracer.Start(ctx, x.route.method+" "+x.route.template, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.arrived))
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attrMethod.String(x.route.method), attrRoute.String(x.route.template), attrRequestID.String(x.id))
	x.journey = &journey{tracer: s.Tracer, ctx: ctx, request: span}
}

// end ends the request's span.
func (j *journey) end(x *exchange) {
	if j == nil {
		return
	}
	status := x.loggedStatus()
	j.request.SetAttributes(attrStatus.Int(status))
	if x.err != nil {
		j.request.SetAttributes(attrErrorType.String(string(x.err.Code)))
	}
	if r := x.record; r != nil {
		j.request.SetAttributes(attrOutcome.String(string(r.Outcome)), attrBackend.String(r.Backend))
	}
	// A refusal is no error of a server; a stream that broke after its 200 is one.
	if status >= 500 || x.record != nil && broke(x.record.Outcome) {
		j.request.SetStatus(codes.Error, "")
	}
	j.request.End()
}

func broke(o api.Outcome) bool {
	return o == api.OutcomeUpstream || o == api.OutcomeTimeout || o == api.OutcomeInterrupted
}

// waited writes down the wait for a slot, from start to now.
func (j *journey) waited(start time.Time, err error) {
	if j == nil {
		return
	}
	_, span := j.tracer.Start(j.ctx, "wait for a slot", trace.WithTimestamp(start))
	if err != nil {
		span.SetAttributes(attrErrorType.String(string(api.AsError(err).Code)))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// serve begins the span of what the Ollama server does, and tells it the span where it shall know.
func (j *journey) serve(b *booking, up *proxy.Request) {
	if j == nil {
		return
	}
	x := b.x
	j.served = time.Now()
	name, attrs := x.route.method+" "+x.route.upstream, make([]attribute.KeyValue, 0, 16)
	attrs = append(attrs, attrServer.String(b.lease.Backend.URL.Hostname()), attrBackend.String(b.lease.Backend.Name), attrMethod.String(x.route.method))
	if port, err := strconv.Atoi(b.lease.Backend.URL.Port()); err == nil {
		attrs = append(attrs, attrPort.Int(port))
	}
	if operation := operations[x.route.kind]; operation != "" {
		asked := b.record.Alias
		if asked == "" {
			asked = b.record.Model
		}
		name = operation + " " + asked
		attrs = append(attrs, attrOperation.String(operation), attrProvider.String("ollama"), attrAsked.String(asked), attrStream.Bool(b.req.Stream))
	}
	ctx, span := j.tracer.Start(j.ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(j.served), trace.WithAttributes(attrs...))
	j.serving = span
	if x.s.TraceUpstream {
		header := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, header)
		up.TraceParent = header["traceparent"]
	}
}

// moved ends the span of a server that did not serve the request, before that of the next.
func (j *journey) moved(failed error) {
	if j == nil || j.serving == nil {
		return
	}
	if failed != nil {
		j.serving.SetAttributes(attrErrorType.String(string(api.AsError(failed).Code)))
	}
	j.serving.SetStatus(codes.Error, "")
	j.serving.End()
	j.serving = nil
}

// operations are what the conventions call what a route does.
var operations = map[dialect.Kind]string{
	dialect.Chat: "chat", dialect.OpenAIChat: "chat", dialect.OpenAIResponses: "chat", dialect.AnthropicMessages: "chat",
	dialect.Generate: "text_completion", dialect.OpenAICompletions: "text_completion",
	dialect.Embed: "embeddings", dialect.Embeddings: "embeddings", dialect.OpenAIEmbeddings: "embeddings",
}

// finished notes why the model stopped, from the end of its answer.
func (j *journey) finished(end []byte) {
	if j != nil {
		j.reason = dialect.FinishReason(end)
	}
}

// booked ends the span of what the Ollama server did, with what the books say of it.
func (j *journey) booked(x *exchange, r *api.Record) {
	if j == nil || j.serving == nil {
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
			attrs = append(attrs, attrFirstChunk.Float64(x.arrived.Add(r.FirstByte).Sub(j.served).Seconds()))
		}
		if j.reason != "" {
			attrs = append(attrs, attrFinish.StringSlice([]string{j.reason}))
		}
	}
	j.serving.SetAttributes(attrs...)
	if r.Outcome != api.OutcomeOK && r.Outcome != api.OutcomeClientGone && r.Outcome != api.OutcomeCut || r.Status >= http.StatusBadRequest {
		j.serving.SetStatus(codes.Error, "")
	}
	j.serving.End()
}

// id is the trace's id for the log, "" where there is none.
func (j *journey) id() string {
	if j == nil {
		return ""
	}
	return j.request.SpanContext().TraceID().String()
}
