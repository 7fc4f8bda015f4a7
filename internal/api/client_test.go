package api

import (
	"fmt"
	"strings"
	"testing"
)

func TestClientOfAUserAgent(t *testing.T) {
	for agent, want := range map[string]string{
		"claude-cli/2.0.14 (external, cli)":                          "claude-code",
		"codex_cli_rs/0.50.0 (Debian 12.0.0; x86_64) xterm":          "codex",
		"OpenAI/Python 2.8.0":                                        "openai-python",
		"AsyncOpenAI/Python 2.8.0":                                   "openai-python",
		"OpenAI/JS 6.9.0":                                            "openai-node",
		"OpenAI/2.8.0 (.NET 9.0.0)":                                  "openai-dotnet",
		"Anthropic/Python 0.75.0":                                    "anthropic-python",
		"ollama/0.6.5 (amd64 linux) Go/go1.24.0":                     "ollama-cli",
		"ollama-python/0.6.0 (x86_64 linux) Python/3.12.3":           "ollama-python",
		"ollama-js/0.6.2 (x64 linux Node.js/v22.0.0)":                "ollama-js",
		"curl/7.88.1":                                                "curl",
		"Python/3.11 aiohttp/3.11.11":                                "python-aiohttp",
		"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140": "browser",
		"":                                  "other",
		"\x00\xff":                          "other",
		strings.Repeat("x", 5000) + "curl/": "other",
	} {
		for range 2 { // also from memory
			if got := ClientOf(agent); got != want {
				t.Errorf("%.60q is %s, want %s", agent, got, want)
			}
		}
	}
	for i := range 3 * mostAgents {
		ClientOf(fmt.Sprint("agent", i))
	}
	if n := len(knownAgents.names); n > mostAgents {
		t.Errorf("%d User-Agents are remembered, want at most %d", n, mostAgents)
	}
}
