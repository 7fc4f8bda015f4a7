package recipe

// Traps that several clients have in common.
const (
	needsResponses = "It needs Ollama 0.13.3 or newer; the gateway answers 501 with older versions."
	needsMessages  = "It needs Ollama 0.14.0 or newer; the gateway answers 501 with older versions."
	keyInAddress   = "The key is part of the address, so it is in the shell's history, in the process list and in the log of a proxy in between. " +
		"Use HTTPS."
	contextLength = "By default, Ollama gives a model a context of 4,096 tokens and cuts off the start of longer input. " +
		"Agents need 64,000: set OLLAMA_CONTEXT_LENGTH on the Ollama server, or num_ctx in the Modelfile, and the same number here."
)

var agents = []Recipe{
	{
		ID: "claude-code", Name: "Claude Code", Group: Agents, Address: "URL", Key: "`ANTHROPIC_AUTH_TOKEN`",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export ANTHROPIC_BASE_URL=<<URL>>
export ANTHROPIC_AUTH_TOKEN=<<KEY>>
unset ANTHROPIC_API_KEY
export ANTHROPIC_MODEL=<<MODEL>>
export ANTHROPIC_DEFAULT_OPUS_MODEL=<<MODEL>>
export ANTHROPIC_DEFAULT_SONNET_MODEL=<<MODEL>>
export ANTHROPIC_DEFAULT_HAIKU_MODEL=<<MODEL>>
export CLAUDE_CODE_SUBAGENT_MODEL=<<MODEL>>
export CLAUDE_CODE_MAX_CONTEXT_TOKENS=64000
export CLAUDE_CODE_ATTRIBUTION_HEADER=0
claude
`}},
		Traps: []string{
			"Unset ANTHROPIC_API_KEY: an empty value counts as set. Claude Code sends it in addition to the token, and two different " +
				"keys of this service in one request are refused.",
			"The address has no /v1.",
			"It requests several models called claude-…: set yours for each tier, or set MODEL_ALIASES=claude-*=MODEL on the gateway. " +
				"ANTHROPIC_SMALL_FAST_MODEL is the old name of ANTHROPIC_DEFAULT_HAIKU_MODEL.",
			"Without CLAUDE_CODE_MAX_CONTEXT_TOKENS it assumes 200,000 tokens or more for an unknown model and does not compact " +
				"in time. " + contextLength,
			"CLAUDE_CODE_ATTRIBUTION_HEADER=0 keeps the first line of its prompt the same, so that Ollama can reuse its prompt cache.",
			needsMessages,
		},
		Tried: Run, Version: "2.1.332",
	},
	{
		ID: "codex", Name: "Codex", Group: Agents, Address: "URL/v1", Key: "the variable that `env_key` names",
		Parts: []Part{
			{Where: "~/.codex/config.toml", Language: TOML, Text: `model = <<MODEL>>
model_provider = "gateway"
model_context_window = 64000

[model_providers.gateway]
name = "Ollama API Service"
base_url = <<URL/v1>>
env_key = "OLLAMA_API_SERVICE_KEY"
wire_api = "responses"
`},
			{Where: "shell", Language: Shell, Text: `export OLLAMA_API_SERVICE_KEY=<<KEY>>
codex
`},
		},
		Traps: []string{
			`wire_api must be "responses": current versions support nothing else.`,
			"env_key is the name of a variable. The key itself does not belong in the file.",
			"model, model_provider and model_context_window must be above the first [table].",
			"Without model_context_window Codex assumes a large context and does not compact in time. " + contextLength,
			needsResponses,
		},
		Tried: Run, Version: "0.171.0",
	},
	{
		ID: "opencode", Name: "opencode", Group: Agents, Address: "URL/v1", Key: "`apiKey` of the provider",
		Parts: []Part{
			{Where: "~/.config/opencode/opencode.json", Language: JSONFile, Text: `{
  "$schema": "https://opencode.ai/config.json",
  "model": <<gateway/MODEL>>,
  "small_model": <<gateway/MODEL>>,
  "provider": {
    "gateway": {
      "npm": "@ai-sdk/openai-compatible",
      "name": "Ollama API Service",
      "options": { "baseURL": <<URL/v1>>, "apiKey": "{env:OLLAMA_API_SERVICE_KEY}" },
      "models": { <<MODEL>>: { "limit": { "context": 64000, "output": 8192 } } }
    }
  }
}
`},
			{Where: "shell", Language: Shell, Text: `export OLLAMA_API_SERVICE_KEY=<<KEY>>
opencode
`},
		},
		Traps: []string{
			"Each model that you want to use needs an entry under models.",
			"Without limit, opencode does not know when to compact. " + contextLength,
			"At the hourly limit, opencode run waits until the hour ends and prints nothing; its window shows the error.",
			"Set small_model too, otherwise a model of another provider generates the titles of sessions.",
		},
		Tried: Run, Version: "1.18.33",
	},
	{
		ID: "aider", Name: "aider", Group: Agents, Address: "URL", Key: "`OLLAMA_API_KEY`",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export OLLAMA_API_BASE=<<URL>>
export OLLAMA_API_KEY=<<KEY>>
aider --model <<ollama_chat/MODEL>>
`}},
		Traps: []string{
			"The model's name starts with ollama_chat/.",
			"aider sets the context (num_ctx) that each request needs; the gateway limits it to MAX_NUM_CTX (32,768).",
		},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "goose", Name: "goose", Group: Agents, Address: "URL", Key: "`OPENAI_API_KEY`",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export GOOSE_PROVIDER=openai
export OPENAI_HOST=<<URL>>
export OPENAI_API_KEY=<<KEY>>
export GOOSE_MODEL=<<MODEL>>
goose session
`}},
		Traps: []string{
			"OPENAI_HOST has no /v1: goose adds v1/chat/completions.",
			"Its own provider ollama sends no key. It works with OLLAMA_HOST=URL/k/KEY.",
		},
		Tried: Replayed, Version: "commit 011dd8c",
	},
	{
		ID: "copilot-cli", Name: "GitHub Copilot CLI", Group: Agents, Address: "URL/v1", Key: "`COPILOT_PROVIDER_API_KEY`",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export COPILOT_PROVIDER_BASE_URL=<<URL/v1>>
export COPILOT_PROVIDER_API_KEY=<<KEY>>
export COPILOT_MODEL=<<MODEL>>
copilot
`}},
		Traps: []string{"The model must be able to call tools.", contextLength},
		Tried: Replayed, Version: "its documentation",
	},
}
