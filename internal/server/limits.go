package server

import (
	"strconv"
	"time"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
)

// showLimits writes the key's hourly limit of requests and what is left of it, and its limit of tokens in the dialects that have
// names for one.
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

// limitHeaders are how a dialect names a limit, in canonical form.
type limitHeaders struct{ limit, remaining, reset string }

// OpenAI's are read by go-openai and LiteLLM, Anthropic's by Zed.
var (
	openAIRequests    = &limitHeaders{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}
	openAITokens      = &limitHeaders{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"}
	anthropicRequests = &limitHeaders{
		"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset",
	}
	anthropicTokens = &limitHeaders{
		"Anthropic-Ratelimit-Tokens-Limit", "Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset",
	}

	requestHeaders = [...]*limitHeaders{dialect.OpenAI: openAIRequests, dialect.Responses: openAIRequests, dialect.Anthropic: anthropicRequests}
	tokenHeaders   = [...]*limitHeaders{dialect.OpenAI: openAITokens, dialect.Responses: openAITokens, dialect.Anthropic: anthropicTokens}
)

var resetNow = []string{"0s"} // of most requests; no one writes to a header's values

// resetAs is a time to wait in the form of the dialect: a duration ("6m0s") in OpenAI's, a moment (RFC 3339) in Anthropic's.
func (x *exchange) resetAs(wait time.Duration) []string {
	switch {
	case x.family == dialect.Anthropic:
		return []string{x.arrived.Add(wait).UTC().Format(time.RFC3339)}
	case wait <= 0:
		return resetNow
	}
	return []string{wait.String()}
}
