package e2e

import "testing"

// The calls that the tests make with OpenAI's and Anthropic's SDKs in every language.
var (
	chatAttempts     = []attempt{{name: "Chat", traits: asks}, {name: "Chat, streamed", traits: asks | streamed, like: "Chat"}}
	responseAttempts = []attempt{
		{name: "Responses", traits: asks | modern},
		{name: "Responses, streamed", traits: asks | streamed | modern, like: "Responses"},
	}
	listAttempt = attempt{name: "Models.List", traits: lists}
)

// sdkPrograms are more SDKs: those for Go, and the oldest supported ones.
func sdkPrograms(js map[string]string, golang string, t *testing.T) []program {
	openAIGo := append(append(append([]attempt{}, chatAttempts...), responseAttempts...), listAttempt)
	return []program{
		{
			name: "openai-oldest", version: js["openai-oldest"], play: playNode("openai.mjs", "openai-oldest"), wrongKey: "AuthenticationError",
			calls: []attempt{
				{name: "chat", traits: asks},
				{name: "chat, streamed", traits: asks | streamed, like: "chat"},
				{name: "embeddings with encoding_format float", traits: asks | uncounted},
				{name: "models.list", traits: lists},
			},
		},
		{
			name: "anthropic-oldest", version: js["anthropic-oldest"], play: playNode("anthropic.mjs", "anthropic-oldest"), wrongKey: "AuthenticationError",
			calls: []attempt{
				{name: "messages", traits: asks | modern},
				{name: "messages, streamed", traits: asks | streamed | modern, like: "messages"},
				{name: "messages.stream", traits: asks | streamed | modern | uncounted, like: "messages"},
			},
		},
		{
			name: "ollama-oldest", version: js["ollama-oldest"], play: playNode("ollama.mjs", "ollama-oldest"), wrongKey: "ResponseError",
			calls: []attempt{
				{name: "chat", traits: asks},
				{name: "chat, streamed", traits: asks | streamed, like: "chat"},
				{name: "list", traits: lists},
			},
		},
		{
			name: "github.com/openai/openai-go/v3", version: moduleVersion(t, golang, "github.com/openai/openai-go/v3"), play: playProgram(golang, "openai-go"),
			wrongKey: "*apierror.Error", calls: openAIGo,
		},
		{
			name: "github.com/openai/openai-go", version: moduleVersion(t, golang, "github.com/openai/openai-go"), play: playProgram(golang, "openai-go1"),
			wrongKey: "*apierror.Error", calls: openAIGo,
		},
		{
			name: "github.com/sashabaranov/go-openai", version: moduleVersion(t, golang, "github.com/sashabaranov/go-openai"), play: playProgram(golang, "go-openai"),
			wrongKey: "*openai.APIError",
			calls: []attempt{
				{name: "CreateChatCompletion", traits: asks},
				{name: "CreateChatCompletionStream", traits: asks | streamed, like: "CreateChatCompletion"},
				{name: "CreateEmbeddings", traits: asks | uncounted},
				{name: "ListModels", traits: lists},
			},
		},
		{
			name: "github.com/anthropics/anthropic-sdk-go", version: moduleVersion(t, golang, "github.com/anthropics/anthropic-sdk-go"), play: playProgram(golang, "anthropic"),
			wrongKey: "*apierror.Error",
			calls: []attempt{
				{name: "Messages", traits: asks | modern},
				{name: "Messages, streamed", traits: asks | streamed | modern, like: "Messages"},
				{name: "Messages.CountTokens", traits: modelled | own},
				listAttempt,
			},
		},
	}
}

// statusOnly has the messages that ollama-ai-provider-v2 shows for failures. It looks for OpenAI's form of an error, but gets Ollama's. If
// a stream breaks after its error record, it reports the break. Ollama's own clients show the record.
var statusOnly = map[string]string{
	wrongKey: "Unauthorized", atLimit: "Too Many Requests", hidden: "Not Found", unknown: "Not Found", gone: "Service Unavailable",
	killed: "terminated", nearly: "terminated", silent: "terminated", stops: "terminated", begins: "Bad Gateway", died: "Bad Gateway",
}

// frameworkPrograms are frameworks that use the SDKs.
func frameworkPrograms(js map[string]string) []program {
	ai := func(name string, text attempt) program {
		stream := attempt{name: "streamText", traits: text.traits | streamed, like: text.name, says: text.says}
		return program{name: name, version: js[name] + " with ai " + js["ai"], play: playNode("ai.mjs", name), wrongKey: "APICallError", patience: aiPatience, calls: []attempt{text, stream}}
	}
	whole := attempt{name: "generateText", traits: asks}
	native := whole
	native.says = statusOnly
	needsNew := attempt{name: "generateText", traits: asks | modern}
	return []program{
		ai("ollama-ai-provider-v2", native),
		ai("@ai-sdk/openai-compatible", whole),
		ai("@ai-sdk/openai", needsNew),
		ai("@ai-sdk/anthropic", needsNew),
		{
			name: "@llamaindex/ollama", version: js["@llamaindex/ollama"] + " with llamaindex " + js["llamaindex"], play: playNode("llamaindex.mjs"),
			calls: []attempt{
				{name: "Ollama.chat", traits: asks},
				{name: "Ollama.chat, streamed", traits: asks | streamed, like: "Ollama.chat"},
				{name: "OpenAI.chat", traits: asks | uncounted},
				{name: "OpenAI.chat, streamed", traits: asks | streamed | uncounted, like: "OpenAI.chat"},
			},
		},
	}
}
