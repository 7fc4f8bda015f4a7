// Package dialect knows the protocols in which clients talk to Ollama: what a request of each route says, which parts of it the
// gateway decides about, and where an answer has its usage and its end. It works on bytes, and passes everything else on unread.
package dialect

// Family is a form of errors and streams.
type Family uint8

// The families. The gateway's own API has the errors of Native. Responses has the errors of OpenAI, but streams of its own.
const (
	Native Family = iota
	OpenAI
	Responses
	Anthropic
)

// Kind says what the body of a route means.
type Kind uint8

// The kinds: one for each kind of body that the gateway reads. None has no body to check.
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
	AnthropicCount // counts the tokens of a message without sending it
)

// fields are the top-level names that Ollama knows in a body. Ollama ignores case when it reads them (also of Unicode letters, like
// encoding/json). A spelling that matches one of these only without case is refused, because the gateway could read it in another
// way.
type fields map[string]string

func names(list ...string) fields {
	f := make(fields, len(list))
	for _, n := range list {
		f[n] = n
	}
	return f
}

// known lists, per kind, the fields of all Ollama versions from 0.6 to 0.33 (docs/ollama-contract), and the fields that the gateway
// removes.
var known = map[Kind]fields{
	Generate: names("model", "name", "prompt", "suffix", "system", "template", "context", "stream", "raw", "format", "keep_alive", "images",
		"options", "think", "truncate", "shift", "logprobs", "top_logprobs", "width", "height", "steps", "temperature", "max_tokens",
		"_debug_render_only"),
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
	OpenAIResponses: names("model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "temperature", "top_p",
		"reasoning", "text", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "background", "conversation", "include",
		"metadata", "previous_response_id", "prompt", "store", "truncation", "user", "top_logprobs", "service_tier"),
	AnthropicMessages: messageFields,
	AnthropicCount:    messageFields,
}

var messageFields = names("model", "max_tokens", "messages", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools",
	"tool_choice", "thinking", "metadata", "output_config", "service_tier", "mcp_servers")

// Family returns the family of the kind's errors and streams.
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

// Streams reports whether an answer is a stream if the request does not say.
func (k Kind) Streams() bool {
	switch k {
	case Generate, Chat, Transfer, Create:
		return true
	}
	return false
}

// mayStream reports whether the route has a "stream" field.
func (k Kind) mayStream() bool {
	switch k {
	case OpenAIChat, OpenAICompletions, OpenAIResponses, AnthropicMessages:
		return true
	}
	return k.Streams()
}

// named reports whether Ollama reads "name" if "model" is empty.
func (k Kind) named() bool {
	switch k {
	case Show, Transfer, Create, Delete:
		return true
	}
	return false
}

// aliased reports whether a model may be requested under an alias: on routes that run or show it, not on those that change it.
func (k Kind) aliased() bool {
	switch k {
	case Transfer, Create, Copy, Delete:
		return false
	}
	return true
}

// Embeds reports whether the kind asks for embeddings.
func (k Kind) Embeds() bool { return k == Embed || k == Embeddings || k == OpenAIEmbeddings }

// Since returns the first version of Ollama that has the kind's route, or "" if every version has it.
func (k Kind) Since() string {
	switch k {
	case OpenAIResponses:
		return "0.13.3"
	case AnthropicMessages:
		return "0.14.0"
	}
	return ""
}
