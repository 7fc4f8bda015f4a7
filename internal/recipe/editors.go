package recipe

var editors = []Recipe{
	{
		ID: "copilot-vscode", Name: "GitHub Copilot in VS Code", Group: Editors, Address: "URL/k/KEY", Key: "in the address",
		Parts: []Part{{Where: "Chat: Manage Language Models, Add Models, Ollama", Language: Form, Text: `URL: <<URL/k/KEY>>
`}},
		Traps: []string{
			"It also sends an empty \"Authorization: Bearer\", which the gateway ignores.",
			"For use with agents, the model must be able to call tools.",
			"Its provider for custom endpoints works as well: address URL/v1/chat/completions, with the key in its own field.",
		},
		Tried: Replayed, Version: "commit 0ea4ed3",
	},
	{
		ID: "cline", Name: "Cline", Group: Editors, Address: "URL", Key: "Ollama API Key",
		Parts: []Part{{Where: "Settings, API Configuration", Language: Form, Text: `API Provider: Ollama
Use custom base URL: <<URL>>
Ollama API Key: <<KEY>>
Model: <<MODEL>>
Model Context Window: 64000
`}},
		Traps: []string{
			"Cline gives up after 30 seconds without an answer: raise Request Timeout, because a large model takes longer to load.",
			"It sends the context window as num_ctx; the gateway limits it to MAX_NUM_CTX (32,768).",
			"It retries every failure, even a wrong key, before it shows the error.",
		},
		Tried: Replayed, Version: "commit 068316f",
	},
	{
		ID: "roo", Name: "Roo Code", Group: Editors, Address: "URL", Key: "Ollama API Key",
		Parts: []Part{{Where: "Settings, Providers", Language: Form, Text: `API Provider: Ollama
Base URL: <<URL>>
Ollama API Key: <<KEY>>
Model: <<MODEL>>
`}},
		Traps: []string{
			"Set the context size (num_ctx) of the Ollama provider, otherwise the model's default is used.",
			"For an unknown or hidden model it says that you must pull it first: choose another model.",
			contextLength,
		},
		Tried: Replayed, Version: "commit 099cf85",
	},
	{
		ID: "kilo", Name: "Kilo Code", Group: Editors, Address: "URL/v1", Key: "API Key",
		Parts: []Part{{Where: "Settings, Providers", Language: Form, Text: `API Provider: OpenAI Compatible
Base URL: <<URL/v1>>
API Key: <<KEY>>
Model: <<MODEL>>
`}},
		Traps: []string{contextLength},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "continue", Name: "Continue", Group: Editors, Address: "URL", Key: "`apiKey`",
		Parts: []Part{{Where: "~/.continue/config.yaml", Language: YAML, Text: `name: Ollama API Service
version: 1.0.0
schema: v1
models:
  - name: <<MODEL>>
    provider: ollama
    model: <<MODEL>>
    apiBase: <<URL>>
    apiKey: <<KEY>>
    roles: [chat, edit, apply]
`}},
		Traps: []string{
			"If the address has a path, such as /k/KEY, apiBase must end in a slash, otherwise Continue drops the last part.",
			contextLength,
		},
		Tried: Replayed, Version: "commit 0108be5",
	},
	{
		ID: "zed", Name: "Zed", Group: Editors, Address: "URL",
		Key: "the Ollama entry of the Agent Panel's settings, or `OLLAMA_API_KEY`",
		Parts: []Part{
			{Where: "settings.json", Language: JSONFile, Text: `{
  "language_models": {
    "ollama": {
      "api_url": <<URL>>,
      "available_models": [{ "name": <<MODEL>>, "max_tokens": 64000, "supports_tools": true }]
    }
  }
}
`},
			{Where: "Agent Panel, Settings, Ollama, API key", Language: Form, Text: "<<KEY>>\n"},
		},
		Traps: []string{
			"Zed sends max_tokens of a model as num_ctx. Without an entry under available_models, that is at most 16,384.",
			"The key is not in a settings file: Zed stores it in the system's key ring.",
		},
		Tried: Replayed, Version: "commit 0138cb1",
	},
	{
		ID: "jetbrains", Name: "JetBrains AI Assistant", Group: Editors, Address: "URL/v1", Key: "API Key",
		Parts: []Part{{Where: "Settings, Tools, AI Assistant, Providers & API keys", Language: Form, Text: `Provider: OpenAI-compatible
URL: <<URL/v1>>
API Key: <<KEY>>
`}},
		Traps: []string{
			"Its provider Ollama has no field for a key: give it the address URL/k/KEY.",
			"Test Connection requests the list of models, which shows only models that the key may use.",
		},
		Tried: Replayed, Version: "its documentation",
	},
}
