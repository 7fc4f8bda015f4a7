// Package dialect knows the languages clients speak to Ollama: what a request of each route says, which of it the gateway
// rules on, and where an answer carries its usage and its end. It works on bytes: what it does not rule on passes unread.
package dialect

// Family is a shape of errors and of streams.
type Family uint8

// The families. Own is the gateway's management API, which speaks Native's errors.
const (
	Native Family = iota
	OpenAI
	Anthropic
)

// Kind says what the body of a route means.
type Kind uint8

// The kinds: one for each body that the gateway reads. None has no body to rule on.
const (
	None Kind = iota
	Generate
	Chat
	Embed
	Embeddings
	Show
	Transfer // pull and push
	Create
	Copy
	Delete
	OpenAIChat
	OpenAICompletions
	OpenAIEmbeddings
)

// fields are the top-level names that Ollama knows in a body. Ollama folds case when it reads them (Unicode too, as
// encoding/json does), so a spelling that only folds to one of these is refused: it could mean something else to us.
type fields map[string]string

func names(list ...string) fields {
	f := make(fields, len(list))
	for _, n := range list {
		f[n] = n
	}
	return f
}

// known lists, per kind, the fields of every Ollama version from 0.6 to 0.33 (docs/ollama-contract).
var known = map[Kind]fields{
	Generate: names("model", "name", "prompt", "suffix", "system", "template", "context", "stream", "raw", "format", "keep_alive", "images",
		"options", "think", "truncate", "shift", "logprobs", "top_logprobs", "width", "height", "steps", "temperature", "max_tokens", "_debug_render_only"),
	Chat: names("model", "name", "messages", "tools", "stream", "format", "keep_alive", "options", "think", "truncate", "shift", "logprobs",
		"top_logprobs", "temperature", "max_tokens", "_debug_render_only"),
	Embed:      names("model", "name", "input", "truncate", "dimensions", "keep_alive", "options", "stream"),
	Embeddings: names("model", "name", "prompt", "keep_alive", "options", "stream"),
	Show:       names("model", "name", "system", "template", "verbose", "options"),
	Transfer:   names("model", "name", "insecure", "stream", "username", "password"),
	Create: names("model", "name", "from", "remote_host", "files", "draft_files", "adapters", "quantize", "quantization", "draft_quantize",
		"template", "license", "system", "parameters", "messages", "renderer", "parser", "requires", "info", "stream", "path", "modelfile"),
	Copy:   names("source", "destination"),
	Delete: names("model", "name"),
	OpenAIChat: names("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "seed", "stop", "temperature",
		"top_p", "frequency_penalty", "presence_penalty", "response_format", "tools", "reasoning", "reasoning_effort", "logprobs", "top_logprobs",
		"n", "user", "tool_choice", "logit_bias", "_debug_render_only"),
	OpenAICompletions: names("model", "prompt", "suffix", "stream", "stream_options", "max_tokens", "seed", "stop", "temperature", "top_p",
		"frequency_penalty", "presence_penalty", "logprobs", "n", "user", "best_of", "echo", "logit_bias", "_debug_render_only"),
	OpenAIEmbeddings: names("model", "input", "dimensions", "encoding_format", "user"),
}

// Family is the family of the kind's errors and streams.
func (k Kind) Family() Family {
	if k >= OpenAIChat {
		return OpenAI
	}
	return Native
}

// Streams says whether an answer streams where the request does not say.
func (k Kind) Streams() bool {
	switch k {
	case Generate, Chat, Transfer, Create:
		return true
	}
	return false
}

// mayStream says whether the route knows "stream" at all.
func (k Kind) mayStream() bool {
	return k.Streams() || k == OpenAIChat || k == OpenAICompletions
}
