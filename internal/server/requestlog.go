package server

import (
	"log/slog"
	"net/http"
	"time"

	"ollama-api-service/internal/api"
)

// logRequest writes the one line of a request. It carries the route template, never the path: a path may hold a key.
func (s *Server) logRequest(x *exchange) {
	level := x.logLevel()
	if !s.Log.Enabled(x.r.Context(), level) {
		return
	}
	message, leftOut := "request", 0
	if x.err != nil {
		message = logMessage(x.err.Code)
	}
	if message == badKeyMessage && x.repeats {
		var write bool
		if leftOut, write = s.badKeys.note(x.addr); !write {
			return
		}
	}
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs, slog.String("request_id", x.id), slog.String("method", logMethod(x.r.Method)), slog.String("route", x.template()),
		slog.Int("status", x.loggedStatus()))
	if client := s.LogAddress.Show(x.addr); client != "" {
		attrs = append(attrs, slog.String("client", client))
	}
	if x.key != nil {
		attrs = append(attrs, slog.String("key", x.key.Preview))
	}
	attrs = x.appendAttrs(attrs)
	if id := x.trace.id(); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", string(x.err.Code)))
		if x.err.Err != nil {
			attrs = append(attrs, slog.String("cause", s.withoutClient(x.err.Err.Error(), x.addr)))
		}
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("left_out", leftOut))
	}
	r := slog.NewRecord(time.Now(), level, message, 0) // without the place in the code, which costs more than the line
	r.AddAttrs(attrs...)
	_ = s.Log.Handler().Handle(x.r.Context(), r) // a log that cannot be written counts its lines
}

// logLevel is debug for probes, warn for what clients must not do, and error for what the operator must see to.
func (x *exchange) logLevel() slog.Level {
	switch {
	case x.err == nil && x.route.watches():
		return slog.LevelDebug
	case x.err == nil:
		return slog.LevelInfo
	}
	switch x.err.Code {
	case api.CodeUnauthorized, api.CodeThrottled, api.CodeForbidden,
		api.CodeRateLimited, api.CodeConcurrency, api.CodeQueueFull, api.CodeQueueTimeout:
		return slog.LevelWarn
	case api.CodeInternal, api.CodeUnavailable, api.CodeNoBackend, api.CodeUpstreamError, api.CodeUpstreamTimeout:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// logMessage names what happened, so that a log can be searched for it.
func logMessage(code api.Code) string {
	switch code {
	case api.CodeUnauthorized, api.CodeThrottled:
		return badKeyMessage
	case api.CodeRateLimited, api.CodeConcurrency:
		return "limit refused"
	}
	return "request failed"
}

// logMethod keeps a method that a client made up out of the log.
func logMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// loggedStatus returns the status that was sent, or 499 if the client left before that.
func (x *exchange) loggedStatus() int {
	if x.status == 0 && x.err != nil && x.err.Code == api.CodeClientGone {
		return statusClientGone
	}
	return x.status
}

// appendAttrs appends the log fields of what was done for the request.
func (x *exchange) appendAttrs(attrs []slog.Attr) []slog.Attr {
	total := time.Since(x.arrived)
	attrs = append(attrs, slog.Float64("ms", api.Milliseconds(total)), slog.Int64("bytes", x.sent))
	r := x.record
	if r == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("model", r.Model), slog.String("outcome", string(r.Outcome)), slog.Bool("streamed", r.Streamed),
		slog.Int64("prompt_tokens", r.PromptTokens), slog.Int64("completion_tokens", r.CompletionTokens),
		slog.Float64("ttfb_ms", api.Milliseconds(r.FirstByte)), slog.Float64("slot_ms", api.Milliseconds(r.Slot)),
		slog.Float64("gpu_ms", api.Milliseconds(max(r.GPU, 0))),
		slog.Int64("bytes_in", r.BytesIn), slog.String("backend", r.Backend))
	attrs = x.history.AppendAttrs(attrs)
	if r.Alias != "" {
		attrs = append(attrs, slog.String("asked_for", r.Alias))
	}
	if r.Estimated {
		attrs = append(attrs, slog.Bool("estimated", true))
	}
	return attrs
}
