// Package dialect knows the languages clients speak to Ollama: what a request of each route says, which of it the gateway
// rules on, and where an answer carries its usage and its end. It works on bytes: what it does not rule on passes unread.
package dialect

// Family is a shape of errors and of streams.
type Family uint8

// The families. The gateway's own API speaks Native's errors; Responses has OpenAI's, but streams of its own.
const (
	Native Family = iota
	OpenAI
	Responses
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
	OpenAIResponses
	AnthropicMessages
	AnthropicCount // tokens of a message that is not sent
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

// known lists, per kind, the fields of every Ollama version from 0.6 to 0.33 (docs/ollama-contract), and those that are taken out.
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
		"n", "user", "tool_choice", "logit_bias", "web_search_options", "_debug_render_only"),
	OpenAICompletions: names("model", "prompt", "suffix", "stream", "stream_options", "max_tokens", "seed", "stop", "temperature", "top_p",
		"frequency_penalty", "presence_penalty", "logprobs", "n", "user", "best_of", "echo", "logit_bias", "_debug_render_only"),
	OpenAIEmbeddings: names("model", "input", "dimensions", "encoding_format", "user"),
	OpenAIResponses: names("model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "temperature", "top_p", "reasoning",
		"text", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "background", "conversation", "include", "metadata",
		"previous_response_id", "prompt", "store", "truncation", "user", "top_logprobs", "service_tier"),
	AnthropicMessages: messageFields,
	AnthropicCount:    messageFields,
}

var messageFields = names("model", "max_tokens", "messages", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools",
	"tool_choice", "thinking", "metadata", "output_config", "service_tier", "mcp_servers")

// Family is the family of the kind's errors and streams.
func (k Kind) Family() Family {
	switch {
	case k >= AnthropicMessages:
		return Anthropic
	case k == OpenAIResponses:
		return Responses
	case k >= OpenAIChat:
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
	switch k {
	case OpenAIChat, OpenAICompletions, OpenAIResponses, AnthropicMessages:
		return true
	}
	return k.Streams()
}

// named says whether Ollama reads "name" where "model" is empty.
func (k Kind) named() bool {
	switch k {
	case Show, Transfer, Create, Delete:
		return true
	}
	return false
}

// aliased says whether a model may be asked for under an alias: where it runs or is shown, not where it is changed.
func (k Kind) aliased() bool {
	switch k {
	case Transfer, Create, Copy, Delete:
		return false
	}
	return true
}

// Embeds says whether the kind asks for embeddings.
func (k Kind) Embeds() bool { return k == Embed || k == Embeddings || k == OpenAIEmbeddings }

// Since is the first version of Ollama that has the kind's route; "" for those that every version has.
func (k Kind) Since() string {
	switch k {
	case OpenAIResponses:
		return "0.13.3"
	case AnthropicMessages:
		return "0.14.0"
	}
	return ""
}
