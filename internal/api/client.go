package api

import (
	"strings"
	"sync"
)

// clients are the names that usage shows for calling programs. A User-Agent is any text, so it is not stored itself, but the first of these
// names whose mark is in it, in small letters.
var clients = []struct{ name, mark string }{
	{"claude-code", "claude-cli"},
	{"codex", "codex"},
	{"opencode", "opencode"},
	{"aider", "aider"},
	{"goose", "goose"},
	{"copilot", "copilot"},
	{"cline", "cline"},
	{"roo", "roocode"},
	{"kilo", "kilo"},
	{"continue", "continue"},
	{"zed", "zed/"},
	{"jetbrains", "jetbrains"},
	{"open-webui", "open webui"},
	{"open-webui", "open-webui"},
	{"n8n", "n8n"},
	{"anythingllm", "anythingllm"},
	{"home-assistant", "homeassistant"},
	{"obsidian", "obsidian"},
	{"ai-sdk", "ai-sdk"},
	{"langchain", "langchain"},
	{"litellm", "litellm"},
	{"llamaindex", "llamaindex"},
	{"ollama-python", "ollama-python"},
	{"ollama-js", "ollama-js"},
	{"ollama-cli", "ollama/"},
	{"openai-python", "openai/python"},
	{"openai-python", "asyncopenai/python"},
	{"openai-node", "openai/js"},
	{"openai-go", "openai/go"},
	{"openai-java", "openai/java"},
	{"openai-dotnet", "openai/"},
	{"anthropic-python", "anthropic/python"},
	{"anthropic-python", "asyncanthropic/python"},
	{"anthropic-node", "anthropic/js"},
	{"anthropic-go", "anthropic/go"},
	{"anthropic-java", "anthropic/java"},
	{"curl", "curl/"},
	{"python-requests", "python-requests"},
	{"python-aiohttp", "aiohttp"},
	{"python-httpx", "python-httpx"},
	{"node", "node"},
	{"go", "go-http-client"},
	{"browser", "mozilla/"},
}

// knownAgents remembers the names of some User-Agents, because a comparison with all marks takes some microseconds.
var knownAgents struct {
	sync.RWMutex
	names map[string]string
}

const mostAgents = 1000

// ClientOf returns the name of the program with this User-Agent: "other" for any that is not in the list.
func ClientOf(userAgent string) string {
	userAgent = userAgent[:min(len(userAgent), 256)]
	knownAgents.RLock()
	name, ok := knownAgents.names[userAgent]
	knownAgents.RUnlock()
	if ok {
		return name
	}
	name = "other"
	text := strings.ToLower(userAgent)
	for _, c := range clients {
		if strings.Contains(text, c.mark) {
			name = c.name
			break
		}
	}
	knownAgents.Lock()
	defer knownAgents.Unlock()
	if knownAgents.names == nil || len(knownAgents.names) >= mostAgents {
		knownAgents.names = map[string]string{}
	}
	knownAgents.names[strings.Clone(userAgent)] = name
	return name
}
