package recipe

var commands = []Recipe{
	{
		ID: "curl", Name: "curl", Group: Commands, Address: "URL", Key: "`Authorization: Bearer`, or `x-api-key`",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `curl <<URL/v1/chat/completions>> \
  -H <<Authorization: Bearer KEY>> \
  -H 'Content-Type: application/json' \
  -d <<{"model": JSON(MODEL), "messages": [{"role": "user", "content": "Say hello"}]}>>
`}},
		Traps: []string{
			"Add -N to a streamed request, otherwise curl buffers the output.",
			"A key on the command line is in the process list; -H @FILE reads the header from a file.",
		},
		Tried: Run, Version: "of the system",
	},
	{
		ID: "ollama", Name: "the ollama command", Group: Commands, Address: "URL/k/KEY", Key: "in the address; it has no other way",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export OLLAMA_HOST=<<URL/k/KEY>>
ollama run <<MODEL>>
`}},
		Traps: []string{
			keyInAddress,
			"ollama run requests a pull of a model that is not in ollama list, which needs an admin key.",
			"ollama stop is refused with a user's key, because others may be using the model.",
		},
		Tried: Run, Version: "0.6.5",
	},
	{
		ID: "ollama-launch-claude", Name: "ollama launch claude", Group: Commands, Address: "URL/k/KEY", Key: "in the address",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export OLLAMA_HOST=<<URL/k/KEY>>
ollama launch claude --model <<MODEL>>
`}},
		Traps: []string{
			keyInAddress,
			"It also sends \"Bearer ollama\". The gateway ignores text that cannot be one of its keys.",
			"The model must be in ollama list, otherwise it requests a pull.",
			needsMessages, contextLength,
		},
		Tried: Replayed, Version: "commit 011d493",
	},
	{
		ID: "ollama-launch-codex", Name: "ollama launch codex", Group: Commands, Address: "URL/k/KEY", Key: "in the address",
		Parts: []Part{{Where: "shell", Language: Shell, Text: `export OLLAMA_HOST=<<URL/k/KEY>>
ollama launch codex --model <<MODEL>>
`}},
		Traps: []string{
			keyInAddress,
			"It writes the address with the key into ~/.codex/config.toml.",
			needsResponses, contextLength,
		},
		Tried: Replayed, Version: "commit 03e6b8c",
	},
}
