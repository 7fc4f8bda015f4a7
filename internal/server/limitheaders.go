package server

import (
	"strconv"
	"time"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
)

// showLimits writes the headers of the key's request limit: the limit and the remaining requests of the rolling window. In the dialects
// that have names for a token limit, it writes that limit too.
func (x *exchange) showLimits(limits *limit.Memory, taken *limit.Reservation) {
	var state limit.State
	if taken != nil {
		state = taken.State()
	} else {
		state = limits.State(x.key)
	}
	if state.Limit >= 0 {
		h := x.Header()
		most, left := []string{strconv.FormatInt(state.Limit, 10)}, []string{strconv.FormatInt(state.Remaining, 10)}
		h["X-Ratelimit-Limit"], h["X-Ratelimit-Remaining"] = most, left
		h["X-Ratelimit-Reset"] = []string{strconv.FormatInt(int64((state.Reset+time.Second-1)/time.Second), 10)}
		if names := requestHeaders[x.family]; names != nil {
			h[names.limit], h[names.remaining], h[names.reset] = most, left, x.resetAs(state.Reset)
		}
	}
	names := tokenHeaders[x.family]
	if names == nil || !x.key.Metered() {
		return
	}
	if tokens := limits.Tokens(x.key); tokens.Limit >= 0 {
		h := x.Header()
		h[names.limit] = []string{strconv.FormatInt(tokens.Limit, 10)}
		h[names.remaining] = []string{strconv.FormatInt(tokens.Remaining, 10)}
		h[names.reset] = x.resetAs(tokens.Reset)
	}
}

// limitHeaders are a dialect's header names for a limit, in canonical form.
type limitHeaders struct{ limit, remaining, reset string }

// go-openai and LiteLLM read OpenAI's headers; Zed reads Anthropic's.
var (
	openAIRequests    = &limitHeaders{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}
	openAITokens      = &limitHeaders{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"}
	anthropicRequests = &limitHeaders{
		"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset",
	}
	anthropicTokens = &limitHeaders{
		"Anthropic-Ratelimit-Tokens-Limit", "Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset",
	}

	requestHeaders = [...]*limitHeaders{
		dialect.OpenAI: openAIRequests, dialect.Responses: openAIRequests, dialect.Anthropic: anthropicRequests,
	}
	tokenHeaders = [...]*limitHeaders{
		dialect.OpenAI: openAITokens, dialect.Responses: openAITokens, dialect.Anthropic: anthropicTokens,
	}
)

var resetNow = []string{"0s"} // shared by most requests; nothing changes the values of a header

// resetAs formats a time to wait for the dialect: as a duration ("6m0s") for OpenAI's, as a point in time (RFC 3339) for Anthropic's.
func (x *exchange) resetAs(wait time.Duration) []string {
	switch {
	case x.family == dialect.Anthropic:
		return []string{x.arrived.Add(wait).UTC().Format(time.RFC3339)}
	case wait <= 0:
		return resetNow
	}
	return []string{wait.String()}
}
