package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

var shapeNames = map[dialect.Family]string{
	dialect.Native: "Ollama", dialect.OpenAI: "OpenAI", dialect.Responses: "OpenAI", dialect.Anthropic: "Anthropic",
}

// families returns the dialects in which a route may fail.
func (r *route) families() []dialect.Family {
	if strings.HasPrefix(r.template, "/v1/models") {
		return []dialect.Family{dialect.OpenAI, dialect.Anthropic} // as familyOf decides
	}
	return []dialect.Family{r.family}
}

func (r *route) failureName(status int) string {
	name := ""
	for _, f := range r.families() {
		name += shapeNames[f]
	}
	name += strconv.Itoa(status)
	if r.counted {
		name += "Counted"
	}
	return name
}

// failures returns the sorted statuses with which a route can fail.
func (r *route) failures() []int {
	list := []int{400, 414, 431} // the head is refused before the route is known
	if r.access != anyone {
		list = append(list, 401, 403, 429, 500, 503)
	}
	_, _, parameter := strings.Cut(r.template, "{")
	switch {
	case r.counted:
		list = append(list, 404, 502, 504)
	case r.upstream != "":
		list = append(list, 404, 502, 504)
	case r.purpose == metadata:
		list = append(list, 404)
	case r.template == "/api/admin/backends" && r.method == http.MethodPost:
		list = append(list, 409)
	case r.template == "/readyz" || r.template == "/api/version":
		list = append(list, 503)
	case parameter:
		list = append(list, 404)
		if r.access != anyone && r.method != http.MethodGet {
			list = append(list, 409)
		}
	}
	if r.method == http.MethodPost || r.method == http.MethodPatch || r.kind != dialect.None {
		list = append(list, 408, 413, 415)
	}
	if r.kind.Since() != "" {
		list = append(list, 501)
	}
	slices.Sort(list)
	return list
}

// failure returns a shared answer. Its examples come from the code that writes the real failures.
func (r *route) failure(status int) object {
	headers := object{}
	r.describeHeader(headers)
	answer := object{"description": explanations[status], "headers": headers}
	if status != http.StatusRequestTimeout {
		headers["X-Should-Retry"] = headerRef("X-Should-Retry")
	}
	switch status {
	case http.StatusUnauthorized:
		headers["WWW-Authenticate"] = headerRef("WWW-Authenticate")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		headers["Retry-After"] = headerRef("Retry-After")
	}
	examples := object{}
	var shapes []object
	for _, f := range r.families() {
		x := exchange{id: exampleID, arrived: admin.ExampleTime}
		shapes = append(shapes, object{"$ref": "#/components/schemas/" + shapeNames[f] + "Error"})
		for _, e := range typicalFailures {
			if statuses[e.Code] != status || !r.counted && countedOnly[e.Code] {
				continue
			}
			name := string(e.Code)
			if examples[name] != nil {
				name += ", " + shapeNames[f]
			}
			examples[name] = object{"value": json.RawMessage(x.failure(&e).Body(f))}
		}
	}
	schema := shapes[0]
	if len(shapes) > 1 {
		schema = object{"anyOf": shapes}
	}
	answer["content"] = object{"application/json": object{"schema": schema, "examples": examples}}
	return answer
}

const exampleID = "0199e3a4-5c1b-7d3e-9a41-3f6f0c2a77b1"

var explanations = map[int]string{
	400: "The request is malformed or ambiguous.",
	401: "The key is missing, mistyped, revoked or expired. Clients that call themselves `ollama/…` get 403 instead, because they show the message of a 403 but not that of a 401.",
	403: "The key may not do this: the route is for admins, the key is used from another address or is blocked, it may not use cloud models, or its policy refuses a field.",
	404: "The path or the thing that it names does not exist, or this key may not see it.",
	408: "The body did not arrive in time.",
	409: "The change conflicts with the current state: the key is already revoked, or it is the last admin key; the change would lock out the key that makes it, or end a grace period that is running, and `force=true` is missing; the name or address of a backend is taken, or `OLLAMA_BASE_URL` sets it.",
	413: "The body is too large.",
	414: "The path and query are too long.",
	415: "The body has a compression that this route does not accept: the `/v1` routes accept gzip and zstd, the others none.",
	429: "The key is at its limit, or too many bad keys came from this address. `Retry-After` says when to try again.",
	431: "The header has too many fields. One above 32 KiB is refused before it is read, in plain text.",
	500: "Something went wrong inside the gateway, or Ollama answered with 500.",
	501: "The Ollama behind this gateway is too old for the route; the message names the version that the route needs.",
	502: "The connection to Ollama broke, or its answer is not valid.",
	503: "No slot became free, Ollama cannot be reached, or the gateway is stopping. `Retry-After` says when to try again.",
	504: "Ollama did not answer in time.",
}

// countedOnly are the failures that only routes with a slot and a record can have.
var countedOnly = map[api.Code]bool{
	api.CodeRateLimited: true, api.CodeConcurrency: true, api.CodeQueueFull: true, api.CodeQueueTimeout: true,
}

// typicalFailures has one example of each code that clients can get.
var typicalFailures = []api.Error{
	{Code: api.CodeBadRequest, Message: "the body has a field twice: send each field once"},
	{Code: api.CodeUnauthorized, Message: "this API key is not valid: unknown, revoked or expired; check that it is complete, or ask an administrator for a new one"},
	{Code: api.CodeThrottled, Message: "too many requests with a bad API key came from your address: check the key, and try again in a minute"},
	{Code: api.CodeForbidden, Message: "this needs an admin key: ask the operator of this service"},
	{Code: api.CodeNotFound, Message: "model 'llama3.2:latest' not found"},
	{Code: api.CodeConflict, Message: "oas_8rT2kLmN0q is the last admin key without allowed_ips; make another admin key without allowed_ips first"},
	{Code: api.CodeTooLarge, Message: "the body is larger than 134217728 bytes (MAX_BODY_BYTES)"},
	{Code: api.CodeTargetTooLong, Message: "the path and query are longer than 8192 bytes"},
	{Code: api.CodeHeadTooLarge, Message: "the header has more than 100 fields"},
	{Code: api.CodeUnsupported, Message: "send the body without Content-Encoding"},
	{Code: api.CodeSlowBody, Message: "the body did not arrive in time: send it without pauses"},
	{Code: api.CodeRateLimited, RetryAfter: 21 * time.Minute, NoRetry: true, Message: "Rate limit exceeded"},
	{Code: api.CodeTokenLimit, RetryAfter: 14 * time.Minute, NoRetry: true, Message: "this key has used 200000 of the 200000 tokens that its tokens_per_hour allows in any 60 minutes: try again in 14m0s, or ask an administrator for more"},
	{Code: api.CodeGPULimit, RetryAfter: 3*time.Hour + 30*time.Minute, NoRetry: true, Message: "this key has used 3600 of the 3600 seconds of the GPU that its gpu_seconds_per_day allows in any 24 hours: try again in 3h30m0s, or ask an administrator for more"},
	{Code: api.CodeConcurrency, Message: "this key has as many requests under way as its max_concurrent of 2 allows; wait until one has ended"},
	{Code: api.CodeQueueFull, Message: "all slots are busy and the queue is full: try again later"},
	{Code: api.CodeQueueTimeout, Message: "no slot became free within 10m0s: try again later"},
	{Code: api.CodeNoBackend, Message: "the Ollama server cannot be reached: try again soon, or ask the operator"},
	{Code: api.CodeTooOld, Message: "the Ollama server is version 0.6.5 and this route needs 0.14.0 or newer: ask the operator for an upgrade, or use another route"},
	{Code: api.CodeUpstreamError, Message: "the connection to the Ollama server broke: try again"},
	{Code: api.CodeUpstreamTimeout, Message: "the Ollama server did not answer in time: it may be loading a model; try again"},
	{Code: api.CodeStopping, Message: "the gateway is stopping: try again in a moment"},
	{Code: api.CodeUnavailable, Message: "the key database cannot be read just now: try again in a few seconds"},
	{Code: api.CodeInternal, Message: "something went wrong inside the gateway; the log has the details under this request id"},
}
