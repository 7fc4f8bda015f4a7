package recipe

var apps = []Recipe{
	{
		ID: "open-webui", Name: "Open WebUI", Group: Apps, Address: "URL", Key: "in the connection's form",
		Parts: []Part{{Where: "Admin Panel, Settings, Connections, Ollama API, +", Language: Form, Text: `URL: <<URL>>
Auth: Bearer <<KEY>>
`}},
		Traps: []string{
			"Its buttons to pull, delete and create models need an admin key.",
			"All its users share this key and its limits.",
			"With ENABLE_FORWARD_USER_INFO_HEADERS it also sends its users' names and addresses. The gateway removes them.",
		},
		Tried: Replayed, Version: "0.6",
	},
	{
		ID: "n8n", Name: "n8n", Group: Apps, Address: "URL", Key: "API Key of the Ollama credential",
		Parts: []Part{{Where: "Credentials, Ollama", Language: Form, Text: `Base URL: <<URL>>
API Key: <<KEY>>
`}},
		Traps: []string{"Versions from before August 2025 have no field for the key: give them the base URL URL/k/KEY."},
		Tried: Replayed, Version: "pull request 17857",
	},
	{
		ID: "anythingllm", Name: "AnythingLLM", Group: Apps, Address: "URL", Key: "Auth Token",
		Parts: []Part{{Where: "Settings, AI Providers, LLM, Ollama", Language: Form, Text: `Ollama Base URL: <<URL>>
Auth Token: <<KEY>>
Ollama Model: <<MODEL>>
`}},
		Traps: []string{
			"Versions from before 2025 have no field for the token: give them the base URL URL/k/KEY.",
			"Set the embedder's Auth Token too; it has its own field.",
		},
		Tried: Replayed, Version: "commit 0066641",
	},
	{
		ID: "home-assistant", Name: "Home Assistant", Group: Apps, Address: "URL", Key: "API key",
		Parts: []Part{{Where: "Settings, Devices & services, Add integration, Ollama", Language: Form, Text: `URL: <<URL>>
API key: <<KEY>>
Model: <<MODEL>>
`}},
		Traps: []string{
			"Versions before 2026 have no field for the key: give them the URL URL/k/KEY.",
			"It offers models that are not installed and pulls the chosen one, which needs an admin key. " +
				"Choose one marked as downloaded.",
		},
		Tried: Replayed, Version: "commit 0069cd7",
	},
	{
		ID: "obsidian", Name: "Obsidian, plugin Copilot", Group: Apps, Address: "URL/v1", Key: "API Key", Origin: "app://obsidian.md",
		Parts: []Part{{Where: "Settings, Copilot, Model, Add Custom Model", Language: Form, Text: `Model Name: <<MODEL>>
Provider: 3rd party (openai-format)
Base URL: <<URL/v1>>
API Key: <<KEY>>
`}},
		Traps: []string{
			"Obsidian is a web page: the gateway needs CORS_ORIGINS=app://obsidian.md, and on phones capacitor://localhost and " +
				"http://localhost. " +
				"Or switch Enable CORS on in the model's form, which sends without streaming.",
		},
		Tried: Replayed, Version: "its documentation",
	},
	{
		ID: "page-assist", Name: "Page Assist", Group: Apps, Address: "URL/k/KEY",
		Key: "in the address, or as a custom header", Origin: "chrome-extension://*",
		Parts: []Part{{Where: "Settings, Ollama Settings, Ollama URL", Language: Form, Text: `<<URL/k/KEY>>
`}},
		Traps: []string{
			"If it shows that Ollama is not running, set CORS_ORIGINS=chrome-extension://* on the gateway, or moz-extension://* for Firefox.",
			"Instead of the key in the address: Advanced Ollama URL Configuration, Custom headers, Authorization: Bearer KEY.",
		},
		Tried: Replayed, Version: "commit 4c94938",
	},
	{
		ID: "browser-extension", Name: "other browser extensions and web pages", Group: Apps, Address: "URL/v1",
		Key: "`Authorization: Bearer`", Origin: "chrome-extension://*",
		Parts: []Part{{Where: "the extension's settings", Language: Form, Text: `URL: <<URL/v1>>
API key: <<KEY>>
`}},
		Traps: []string{
			"The gateway needs their origin in CORS_ORIGINS: chrome-extension://*, moz-extension://*, or the page's https://NAME.",
			"Everyone who sees a web page can read a key in it.",
		},
		Tried: Replayed, Version: "the Fetch standard",
	},
}
