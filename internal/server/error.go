package server

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// statusClientGone is nginx's word for a client that left before the answer: logs carry it, no client ever sees it.
const statusClientGone = 499

// statuses says which HTTP status a failure has. It is the only place that does.
var statuses = map[api.Code]int{
	api.CodeBadRequest:       http.StatusBadRequest,
	api.CodeUnauthorized:     http.StatusUnauthorized,
	api.CodeThrottled:        http.StatusTooManyRequests,
	api.CodeForbidden:        http.StatusForbidden,
	api.CodeNotFound:         http.StatusNotFound,
	api.CodeMethodNotAllowed: http.StatusMethodNotAllowed,
	api.CodeNoWebSocket:      http.StatusUpgradeRequired,
	api.CodeConflict:         http.StatusConflict,
	api.CodeTooLarge:         http.StatusRequestEntityTooLarge,
	api.CodeTargetTooLong:    http.StatusRequestURITooLong,
	api.CodeHeadTooLarge:     http.StatusRequestHeaderFieldsTooLarge,
	api.CodeUnsupported:      http.StatusUnsupportedMediaType,
	api.CodeSlowBody:         http.StatusRequestTimeout,
	api.CodeRateLimited:      http.StatusTooManyRequests,
	api.CodeTokenLimit:       http.StatusTooManyRequests,
	api.CodeGPULimit:         http.StatusTooManyRequests,
	api.CodeConcurrency:      http.StatusTooManyRequests,
	api.CodeQueueFull:        http.StatusServiceUnavailable,
	api.CodeQueueTimeout:     http.StatusServiceUnavailable,
	api.CodeNoBackend:        http.StatusServiceUnavailable,
	api.CodeTooOld:           http.StatusNotImplemented,
	api.CodeUpstreamError:    http.StatusBadGateway,
	api.CodeUpstreamTimeout:  http.StatusGatewayTimeout,
	api.CodeClientGone:       statusClientGone,
	api.CodeInterrupted:      http.StatusServiceUnavailable,
	api.CodeStopping:         http.StatusServiceUnavailable,
	api.CodeUnavailable:      http.StatusServiceUnavailable,
	api.CodeInternal:         http.StatusInternalServerError,
}

// failure is an error with what the dialects say of it.
func (x *exchange) failure(e *api.Error) dialect.Failure {
	return dialect.Failure{Error: e, Status: statuses[e.Code], RequestID: x.id, Arrived: x.arrived}
}

// fail writes a failure in the caller's dialect: the whole answer if none has begun, otherwise the dialect's error record and then
// the end of the stream, so that no client takes a cut answer for a whole one.
func (x *exchange) fail(err error) {
	x.beat.pause()
	e := x.whoLeft(err)
	x.err = e
	if x.started() {
		_, err := x.Write(x.failure(e).Record(x.family, x.meter))
		if err == nil {
			err = x.FlushError()
		}
		if err != nil || !x.endsInOrder() {
			panic(http.ErrAbortHandler)
		}
		return
	}
	if e.Code == api.CodeClientGone {
		panic(http.ErrAbortHandler)
	}
	x.readOn(e.Code)
	body := x.failure(e).Body(x.family)
	h := x.Header()
	h.Del("X-Accel-Buffering") // of the answer that did not come
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.retryHeaders(e)
	status := x.statusOf(e.Code)
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="ollama-api-service"`)
	}
	if status == http.StatusUpgradeRequired && x.r.ProtoMajor == 1 {
		h["Upgrade"], h["Connection"] = []string{"HTTP/1.1"}, []string{"Upgrade"} // RFC 9110, 15.5.22
	}
	x.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.Write(body) // a client that is gone cannot be told
	}
}

// statusOf is the status of a failure for this client. The ollama command prints the sentence of a 403, and hides that of a
// 401 behind "see the ollama server logs".
func (x *exchange) statusOf(code api.Code) int {
	if code == api.CodeUnauthorized && strings.HasPrefix(x.r.UserAgent(), "ollama/") {
		return http.StatusForbidden
	}
	return statuses[code]
}

func (x *exchange) retryHeaders(e *api.Error) {
	status := statuses[e.Code]
	// Without it the OpenAI and Anthropic SDKs sleep out the whole Retry-After before their user learns anything, and Claude Code
	// repeats a 401 for minutes.
	if e.NoRetry || status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout {
		x.Header()["X-Should-Retry"] = []string{"false"}
	}
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return
	}
	seconds := max(1, int64(math.Ceil(e.RetryAfter.Seconds())))
	x.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	if e.Code == api.CodeRateLimited {
		x.Header().Set("X-RateLimit-Reset", strconv.FormatInt(seconds, 10)) // a second may have passed between the two
	}
}

// endFailed ends a stream in which upstream's own error record has passed.
func (x *exchange) endFailed() error {
	if x.meter.Failure != "" {
		if _, err := x.Write(x.failure(&api.Error{Code: api.CodeUpstreamError, Message: x.meter.Failure}).Response(x.meter)); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if !x.endsInOrder() {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// endsInOrder reports whether a stream that failed ends as HTTP has it, behind its error record. A client that reads events needs
// that: when the connection breaks, the AI SDK reports the break, and Codex reports nothing else. Streams of lines break: clients of
// Ollama read the record first, and a program that looks for "done" only must not take the end for it.
//
// A chunk of OpenAI's chat that carries an error is no event of its own, and simple readers pass over it: langchaingo 0.1.14 returns
// the half as a whole answer. So in that dialect only the clients that are known to show the error get an end in order. To the
// others the connection breaks. HTTP libraries hand out what came before a break, so a reader that knows the record still sees it.
func (x *exchange) endsInOrder() bool {
	events := strings.HasPrefix(x.Header().Get("Content-Type"), "text/event-stream")
	switch x.family {
	case dialect.Native:
		return false
	case dialect.OpenAI:
		agent := x.r.UserAgent()
		knows := func(name string) bool { return strings.HasPrefix(agent, name) || strings.Contains(agent, " "+name) }
		return events && (x.r.Header.Get("X-Stainless-Lang") != "" || slices.ContainsFunc(errorReaders, knows))
	}
	return events
}

// errorReaders are what the clients that show an error within a stream of OpenAI's call themselves, besides OpenAI's own SDKs, which
// send X-Stainless-Lang. The AI SDK up to 4 has only the name of its runtime.
var errorReaders = []string{"ai-sdk-", "ai-sdk/", "opencode/", "node"}
