package e2e

import (
	"cmp"
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/recipe"
)

// replayed is one request of a client that is not installed here, as the client's source builds it. The test fills in KEY and MODEL. The
// path follows the address in the recipe.
type replayed struct {
	method, path string
	header       map[string]string
	body         string
}

func (o replayed) request(t *testing.T, address string, v recipe.Values) *http.Request {
	t.Helper()
	fill := strings.NewReplacer("KEY", v.Key, "MODEL", v.Model)
	req, err := http.NewRequestWithContext(t.Context(), o.method, address+o.path, strings.NewReader(fill.Replace(o.body)))
	if err != nil {
		t.Fatal(err)
	}
	if o.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range o.header {
		req.Header.Set(name, fill.Replace(value))
	}
	return req
}

// The headers and bodies that several clients send.
var (
	byHeader = map[string]string{"Authorization": "Bearer KEY"}
	xAPIKey  = map[string]string{"X-Api-Key": "KEY", "Anthropic-Version": "2023-06-01"}
	nothing  = map[string]string{"Authorization": "Bearer "} // sent if the client's key field is empty
	toolList = `[{"type":"function","function":{"name":"read_file","description":"Reads","parameters":{"type":"object","properties":{"path":{"type":"string"}},"required":["path"]}}}]`
)

func reads(path string, header map[string]string) replayed { return replayed{"GET", path, header, ""} }

func nativeChat(header map[string]string, options string) replayed {
	return replayed{"POST", "/api/chat", header, `{"model":"MODEL","messages":[{"role":"system","content":"Be brief"},{"role":"user","content":"Say hello"}],"stream":true,"options":` +
		cmp.Or(options, "{}") + `}`}
}

func openAIChat(path string, header map[string]string) replayed {
	return replayed{"POST", path, header, `{"model":"MODEL","messages":[{"role":"user","content":"Say hello"}],"stream":true,"stream_options":{"include_usage":true},"temperature":0}`}
}

func wholeChat(path string, header map[string]string) replayed {
	return replayed{"POST", path, header, `{"model":"MODEL","messages":[{"role":"user","content":"Say hello"}]}`}
}

func message(path string, header map[string]string, stream string) replayed {
	return replayed{"POST", path, header, `{"model":"MODEL","max_tokens":1024,"messages":[{"role":"user","content":"Say hello"}],"stream":` + stream + `}`}
}

var (
	show = replayed{"POST", "/api/show", byHeader, `{"model":"MODEL"}`}
	// launched has the header of "ollama launch claude": the key is in the address, and the header has a placeholder.
	launched = map[string]string{"Authorization": "Bearer ollama", "Anthropic-Version": "2023-06-01", "Anthropic-Beta": "interleaved-thinking-2025-05-14"}
)

// replays are the requests of the clients whose recipes say "replayed from its source".
var replays = map[string][]replayed{
	"ollama-launch-claude": {
		reads("/api/tags", nil), {"POST", "/api/show", nil, `{"model":"MODEL"}`}, message("/v1/messages?beta=true", launched, "true"),
	},
	"ollama-launch-codex": {
		reads("/api/tags", nil),
		{"POST", "/api/show", nil, `{"model":"MODEL"}`},
		{
			"POST", "/v1/responses",
			map[string]string{"Accept": "text/event-stream", "Originator": "codex_exec"},
			`{"model":"MODEL","instructions":"Be brief","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"Say hello"}]}],` +
				`"tools":[{"type":"web_search","external_web_access":false}],"tool_choice":"auto","parallel_tool_calls":false,"store":false,"stream":true,"include":[]}`,
		},
	},
	"ollama-python":    {reads("/api/tags", byHeader), nativeChat(byHeader, "")},
	"openai-python":    {reads("/models", byHeader), wholeChat("/chat/completions", map[string]string{"Authorization": "Bearer KEY", "X-Stainless-Lang": "python"})},
	"openai-java":      {wholeChat("/chat/completions", map[string]string{"Authorization": "Bearer KEY", "X-Stainless-Lang": "java"})},
	"openai-dotnet":    {wholeChat("/chat/completions", map[string]string{"Authorization": "Bearer KEY", "User-Agent": "OpenAI/2.8.0 (.NET 9.0.0)"})},
	"anthropic-python": {reads("/v1/models", xAPIKey), message("/v1/messages", xAPIKey, "false")},
	"anthropic-java":   {message("/v1/messages", xAPIKey, "false")},
	"anthropic-dotnet": {message("/v1/messages", xAPIKey, "false")},

	"langchain-python":  {reads("/api/tags", byHeader), nativeChat(byHeader, `{"num_ctx":4096,"temperature":0.8}`)},
	"llamaindex-python": {wholeChat("/chat/completions", byHeader)},

	"aider":       {show, nativeChat(byHeader, `{"num_ctx":16384,"temperature":0}`)},
	"goose":       {reads("/v1/models", byHeader), openAIChat("/v1/chat/completions", byHeader)},
	"copilot-cli": {openAIChat("/chat/completions", byHeader)},

	"copilot-vscode": {
		reads("/api/version", nil), reads("/api/tags", nil),
		{"POST", "/api/show", nil, `{"model":"MODEL"}`},
		openAIChat("/v1/chat/completions", nothing),
	},
	"cline": {reads("/api/tags", byHeader), nativeChat(byHeader, `{"num_ctx":64000}`)},
	"roo":   {reads("/api/tags", byHeader), show, nativeChat(byHeader, `{"num_ctx":32768,"temperature":0}`)},
	"kilo":  {reads("/models", byHeader), openAIChat("/chat/completions", byHeader)},
	"continue": {
		{"POST", "/api/show", byHeader, `{"name":"MODEL"}`},
		nativeChat(byHeader, `{"num_ctx":8192,"num_predict":2048,"stop":["<|im_end|>"]}`),
	},
	"zed": {
		reads("/api/tags", byHeader), show,
		{"POST", "/api/chat", byHeader, `{"model":"MODEL","messages":[{"role":"user","content":"Say hello"}],"stream":false,"keep_alive":-1,"options":{"num_ctx":64000},"tools":` + toolList + `}`},
	},
	"jetbrains": {reads("/models", byHeader), openAIChat("/chat/completions", byHeader)},

	"open-webui":     {reads("/api/version", nil), reads("/api/tags", byHeader), nativeChat(byHeader, "")},
	"n8n":            {reads("/api/tags", byHeader), reads("/", byHeader), nativeChat(byHeader, `{"temperature":0.7}`)},
	"anythingllm":    {reads("/api/tags", byHeader), show, nativeChat(byHeader, `{"useMLock":true,"temperature":0.7}`)},
	"home-assistant": {reads("/api/tags", byHeader), nativeChat(byHeader, `{"num_ctx":8192}`)},

	"obsidian":          {openAIChat("/chat/completions", byHeader)},
	"page-assist":       {reads("", nil), reads("/api/tags", nil), nativeChat(nil, "")},
	"browser-extension": {reads("/models", byHeader), openAIChat("/chat/completions", byHeader)},
}
