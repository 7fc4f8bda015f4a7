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

// statusClientGone is nginx's status for a client that left before the answer. It appears in logs; no client ever gets it.
const statusClientGone = 499

// statuses maps each code to its HTTP status. No other place does this.
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

// failure returns e with the facts that the dialects need to write it.
func (x *exchange) failure(e *api.Error) dialect.Failure {
	return dialect.Failure{Error: e, Status: statuses[e.Code], RequestID: x.id, Arrived: x.arrived}
}

// fail writes a failure in the client's dialect. If no answer has begun, the failure is the answer. Otherwise fail writes the dialect's
// error record and ends the stream, so that no client takes a cut answer for a complete one.
func (x *exchange) fail(err error) {
	x.beat.pause()
	e := x.asError(err)
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
	h.Del("X-Accel-Buffering") // it was set for the answer that failed
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
		_, _ = x.Write(body) // a client that has left cannot read the error
	}
}

// statusOf returns the status of a failure for this client. The ollama command prints the message of a 403, but replaces that of a 401 with
// "see the ollama server logs".
func (x *exchange) statusOf(code api.Code) int {
	if code == api.CodeUnauthorized && strings.HasPrefix(x.r.UserAgent(), "ollama/") {
		return http.StatusForbidden
	}
	return statuses[code]
}

func (x *exchange) retryHeaders(e *api.Error) {
	status := statuses[e.Code]
	// Without this header, the OpenAI and Anthropic SDKs wait for the whole Retry-After before they report anything to their user, and
	// Claude Code repeats a 401 for minutes.
	if e.NoRetry || status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout {
		x.Header()["X-Should-Retry"] = []string{"false"}
	}
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return
	}
	seconds := max(1, int64(math.Ceil(e.RetryAfter.Seconds())))
	x.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	if e.Code == api.CodeRateLimited {
		x.Header().Set("X-RateLimit-Reset", strconv.FormatInt(seconds, 10)) // a second may have passed since showLimits set it
	}
}

// endFailed ends a stream that already contains upstream's own error record.
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

// endsInOrder reports whether a failed stream ends properly for HTTP after its error record, instead of with a broken connection. Clients
// that read server-sent events need a proper end: when the connection breaks, the AI SDK reports the break, and Codex reports only the
// break. NDJSON streams end with a broken connection: Ollama's clients read the error record first, and a program that only looks for
// "done" must not take the end of the stream for it.
//
// In OpenAI's chat, a chunk with an error is not an event of its own, and simple readers skip it: langchaingo 0.1.14 returns half an answer
// as a complete one. So in that dialect only clients that are known to show the error get a proper end. For other clients the connection
// breaks. HTTP libraries deliver the bytes before the break, so a reader that knows the error record still sees it.
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

// errorReaders are the User-Agents of the clients that show an error in an OpenAI stream. OpenAI's own SDKs are not in the list, because
// they send X-Stainless-Lang. The AI SDK up to version 4 sends only the name of its runtime.
var errorReaders = []string{"ai-sdk-", "ai-sdk/", "opencode/", "node"}
