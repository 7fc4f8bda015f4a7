package server

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

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

// fail writes a failure in the caller's dialect: the whole answer if none has begun, otherwise the dialect's error record and then
// the end of the stream, so that no client takes a cut answer for a whole one.
func (x *exchange) fail(err error) {
	x.beat.pause()
	e := x.whoLeft(err)
	x.err = e
	if x.started() {
		_, err := x.Write(x.errorRecord(e))
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
	body := x.errorBody(e)
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

// errorBody is a failure as one JSON object in the caller's dialect. Anthropic's carries the request's id, as theirs does.
func (x *exchange) errorBody(e *api.Error) []byte {
	switch x.family {
	case dialect.OpenAI:
		return openAIError(e, openAIType(statuses[e.Code]), "")
	case dialect.Responses:
		if e.NoRetry && usedUp[e.Code] {
			// Codex shows a limit, and when it ends, in this form only; any other 429 it repeats, or calls a "retry limit".
			return openAIError(e, "usage_limit_reached", `,"resets_at":`+strconv.FormatInt(x.arrived.Add(e.RetryAfter).Unix(), 10))
		}
		return openAIError(e, openAIType(statuses[e.Code]), "")
	case dialect.Anthropic:
		b := append([]byte(`{"type":"error","error":{"type":"`), anthropicType(statuses[e.Code])...)
		b = append(append(b, `","message":`...), quoted(e.Message)...)
		b = append(append(b, `},"request_id":`...), quoted(x.id)...)
		// Without a "message" at the top their SDKs show the whole object in place of a sentence.
		b = append(append(b, `,"message":`...), quoted(e.Message)...)
		return append(b, '}')
	}
	return nativeError(e)
}

// nativeError carries its sentence twice: Ollama's clients read "error", this API's documents promise "detail".
func nativeError(e *api.Error) []byte {
	message := quoted(e.Message)
	b := append([]byte(`{"error":`), message...)
	b = append(append(b, `,"detail":`...), message...)
	return append(b, '}')
}

// withSentence gives a failure of Ollama's own what ours have beside it, because clients look for the sentence there: native
// "detail", and for Anthropic's clients "message" at the top.
func (x *exchange) withSentence(status int, body []byte) []byte {
	if status < http.StatusBadRequest {
		return body
	}
	var theirs struct {
		Error           json.RawMessage
		Detail, Message *string
	}
	var sentence string
	field := `,"detail":`
	if json.Unmarshal(body, &theirs) != nil || theirs.Detail != nil || theirs.Message != nil {
		return body
	}
	switch x.family {
	case dialect.Native:
		_ = json.Unmarshal(theirs.Error, &sentence) // what is no string has no sentence
	case dialect.Anthropic:
		var inner struct{ Message string }
		_ = json.Unmarshal(theirs.Error, &inner)
		sentence, field = inner.Message, `,"message":`
	}
	end := bytes.LastIndexByte(body, '}')
	if sentence == "" {
		return body
	}
	return slices.Concat(body[:end], []byte(field), quoted(sentence), body[end:])
}

// usedUp are the limits that an hour or a day brings back.
var usedUp = map[api.Code]bool{api.CodeRateLimited: true, api.CodeTokenLimit: true, api.CodeGPULimit: true}

// openAIError is a failure of that type, with more fields behind the usual ones.
func openAIError(e *api.Error, kind, more string) []byte {
	b := append([]byte(`{"error":{"message":`), quoted(e.Message)...)
	b = append(append(b, `,"type":"`...), kind...)
	b = append(append(b, `","param":null,"code":"`...), e.Code...)
	b = append(append(b, '"'), more...)
	return append(b, "}}"...)
}

// errorRecord is a failure in the middle of a stream: a line of NDJSON, or a server-sent event.
func (x *exchange) errorRecord(e *api.Error) []byte {
	body := x.errorBody(e)
	switch x.family {
	case dialect.OpenAI:
		return slices.Concat([]byte("data: "), body, []byte("\n\n"))
	case dialect.Anthropic:
		return slices.Concat([]byte("event: error\ndata: "), body, []byte("\n\n"))
	case dialect.Responses:
		// Beside the fields of its standard, the event needs an "error" at the top: of one without it OpenAI's SDK shows "terminated".
		m := cmp.Or(x.meter, &dialect.Meter{})
		b := append([]byte("event: error\ndata: "+`{"type":"error","sequence_number":`), strconv.FormatInt(m.Events, 10)...)
		b = append(append(b, `,"code":"`...), e.Code...)
		b = append(append(b, `","message":`...), quoted(e.Message)...)
		b = append(b, `,"param":null,`...)
		b = append(append(b, body[1:]...), "\n\n"...)
		return append(b, x.failedResponse(e.Code, e.Message)...)
	}
	return append(body, '\n')
}

// failedResponse ends a Responses stream that failed: Codex reads nothing but this event, and only when the body has ended.
func (x *exchange) failedResponse(code api.Code, message string) []byte {
	m := cmp.Or(x.meter, &dialect.Meter{})
	return m.FailedResponse(x.id, x.arrived, responseErrors[statuses[code]/100], quoted(message))
}

// endFailed ends a stream in which upstream's own error record has passed.
func (x *exchange) endFailed() error {
	if x.meter.Failure != "" {
		if _, err := x.Write(x.failedResponse(api.CodeUpstreamError, x.meter.Failure)); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if !x.endsInOrder() {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// responseErrors are what response.failed calls a failure, by the hundreds of its status. Codex repeats a server_error.
var responseErrors = map[int]string{4: "invalid_prompt", 5: "server_error"}

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

func openAIType(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusMethodNotAllowed, http.StatusUpgradeRequired,
		http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
		return "invalid_request_error"
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	}
	return "api_error"
}

func anthropicType(status int) string {
	switch status {
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	return openAIType(status) // the rest they share
}

func quoted(s string) []byte {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		return []byte(`"an error whose text is not valid"`)
	}
	return b
}
