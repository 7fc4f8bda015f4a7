package dialect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"ollama-api-service/internal/api"
)

// Failure is an error of the service, in the form that the clients of each dialect read.
type Failure struct {
	*api.Error
	Status    int // of HTTP
	RequestID string
	Arrived   time.Time // when the request arrived
}

// Body returns the failure as one JSON object. Anthropic's form has the request's id, as in their own service.
func (f Failure) Body(family Family) []byte {
	switch family {
	case OpenAI:
		return f.openAI(openAIType(f.Status), "")
	case Responses:
		if f.NoRetry && usedUp[f.Code] {
			// Codex shows a limit and its end only in this form. It retries any other 429, or reports a "retry limit".
			return f.openAI("usage_limit_reached", `,"resets_at":`+strconv.FormatInt(f.Arrived.Add(f.RetryAfter).Unix(), 10))
		}
		return f.openAI(openAIType(f.Status), "")
	case Anthropic:
		b := append([]byte(`{"type":"error","error":{"type":"`), anthropicType(f.Status)...)
		b = append(append(b, `","message":`...), Quote(f.Message)...)
		b = append(append(b, `},"request_id":`...), Quote(f.RequestID)...)
		// Without a "message" at the top level, their SDKs show the whole object instead of a sentence.
		b = append(append(b, `,"message":`...), Quote(f.Message)...)
		return append(b, '}')
	}
	return NativeError(f.Message)
}

// NativeError returns a failure in Ollama's dialect. It has its sentence twice: Ollama's clients read "error", and the documentation
// of this API promises "detail".
func NativeError(sentence string) []byte {
	message := Quote(sentence)
	b := append([]byte(`{"error":`), message...)
	b = append(append(b, `,"detail":`...), message...)
	return append(b, '}')
}

// openAI returns the failure in OpenAI's dialect, with further fields after the usual ones.
func (f Failure) openAI(kind, more string) []byte {
	b := append([]byte(`{"error":{"message":`), Quote(f.Message)...)
	b = append(append(b, `,"type":"`...), kind...)
	b = append(append(b, `","param":null,"code":"`...), f.Code...)
	b = append(append(b, '"'), more...)
	return append(b, "}}"...)
}

// usedUp has the limits that reset only after an hour or a day.
var usedUp = map[api.Code]bool{api.CodeRateLimited: true, api.CodeTokenLimit: true, api.CodeGPULimit: true}

// Record returns the failure in the middle of a stream: a line of NDJSON, or a server-sent event. m is the meter of the stream, or
// nil before there is one.
func (f Failure) Record(family Family, m *Meter) []byte {
	body := f.Body(family)
	switch family {
	case OpenAI:
		return slices.Concat([]byte("data: "), body, []byte("\n\n"))
	case Anthropic:
		return slices.Concat([]byte("event: error\ndata: "), body, []byte("\n\n"))
	case Responses:
		// The event needs an "error" at the top level in addition to the fields of its standard. Without it, OpenAI's SDK shows
		// "terminated".
		m = cmp.Or(m, &Meter{})
		b := append([]byte("event: error\ndata: "+`{"type":"error","sequence_number":`), strconv.FormatInt(m.Events, 10)...)
		b = append(append(b, `,"code":"`...), f.Code...)
		b = append(append(b, `","message":`...), Quote(f.Message)...)
		b = append(b, `,"param":null,`...)
		b = append(append(b, body[1:]...), "\n\n"...)
		return append(b, f.Response(m)...)
	}
	return append(body, '\n')
}

// Response ends a stream of the Responses API that failed. Codex reads only this event, and only after the body has ended.
func (f Failure) Response(m *Meter) []byte {
	m = cmp.Or(m, &Meter{})
	return m.failedResponse(f.RequestID, f.Arrived, responseErrors[f.Status/100], Quote(f.Message))
}

// responseErrors are the names of failures in response.failed, by the first digit of the status. Codex retries a server_error.
var responseErrors = map[int]string{4: "invalid_prompt", 5: "server_error"}

// AddSentence adds to a failure of Ollama's own the field in which clients look for the sentence: "detail" in Ollama's dialect,
// "message" at the top level in Anthropic's. It returns other bodies unchanged.
func AddSentence(family Family, status int, body []byte) []byte {
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
	switch family {
	case Native:
		_ = json.Unmarshal(theirs.Error, &sentence) // without a string there is no sentence
	case Anthropic:
		var inner struct{ Message string }
		_ = json.Unmarshal(theirs.Error, &inner)
		sentence, field = inner.Message, `,"message":`
	}
	end := bytes.LastIndexByte(body, '}')
	if sentence == "" {
		return body
	}
	return slices.Concat(body[:end], []byte(field), Quote(sentence), body[end:])
}

func openAIType(status int) string {
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusUpgradeRequired, http.StatusUnsupportedMediaType,
		http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
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
	return openAIType(status) // they share the other types
}

// Quote returns s as a JSON string.
func Quote(s string) []byte {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		return []byte(`"an error whose text is not valid"`)
	}
	return b
}
