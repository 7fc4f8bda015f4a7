package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// With a schema Ollama lets a model that thinks answer twice, and counts only the second run: the key pays for what has passed.
func TestAnAnswerToASchemaIsBookedWithItsThinking(t *testing.T) {
	b := start(t, setup{})
	native := func(thinks bool) []string {
		var chunks []string
		if thinks {
			for range 30 {
				chunks = append(chunks, `{"model":"tiny","message":{"role":"assistant","content":"","thinking":"word "},"done":false}`+"\n")
			}
		}
		for range 4 {
			chunks = append(chunks, `{"model":"tiny","message":{"role":"assistant","content":"1"},"done":false}`+"\n")
		}
		return append(chunks, `{"model":"tiny","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":9,"prompt_eval_count":50,"eval_count":5}`+"\n")
	}
	openAI := func() []string {
		var chunks []string
		for i := range 34 {
			field := "reasoning"
			if i >= 30 {
				field = "content"
			}
			chunks = append(chunks, fmt.Sprintf(`data: {"id":"c","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"role":"assistant",%q:"word "},"finish_reason":null}]}`+"\n\n", field))
		}
		return append(chunks, `data: {"id":"c","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}`+"\n\n",
			`data: {"id":"c","object":"chat.completion.chunk","model":"tiny","choices":[],"usage":{"prompt_tokens":50,"completion_tokens":5,"total_tokens":55}}`+"\n\n", "data: [DONE]\n\n")
	}
	ndjson, sse := "application/x-ndjson", "text/event-stream"
	whole := fmt.Sprintf(`{"model":"tiny","message":{"role":"assistant","content":"{}","thinking":%q},"done":true,"done_reason":"stop","total_duration":9,"prompt_eval_count":50,"eval_count":5}`,
		strings.Repeat("words are ", 30))
	for _, c := range []struct {
		name, path, fields, kind string
		chunks                   []string
		body                     string
		least, most              float64
	}{
		{"a stream with a schema", "/api/chat", `,"format":{"type":"object"}`, ndjson, native(true), "", 34, 34},
		{"a stream with the name of a format", "/api/chat", `,"format":"json"`, ndjson, native(true), "", 34, 34},
		{"a stream without thinking", "/api/chat", `,"format":{"type":"object"}`, ndjson, native(false), "", 5, 5},
		{"a stream without a schema", "/api/chat", ``, ndjson, native(true), "", 5, 5},
		{"a stream with an empty format", "/api/chat", `,"format":""`, ndjson, native(true), "", 5, 5},
		{"OpenAI's stream", "/v1/chat/completions", `,"stream":true,"response_format":{"type":"json_object"}`, sse, openAI(), "", 34, 35},
		{"OpenAI's stream without a schema", "/v1/chat/completions", `,"stream":true`, sse, openAI(), "", 5, 5},
		{"a whole answer", "/api/chat", `,"stream":false,"format":{"type":"object"}`, "application/json", nil, whole, 75, 77},
		{"a whole answer without a schema", "/api/chat", `,"stream":false`, "application/json", nil, whole, 5, 5},
	} {
		key, preview := b.key(fmt.Sprintf(`{"name":%q,"role":"user"}`, c.name))
		b.ollama.Script("POST", c.path, ollamatest.Answer{Chunks: c.chunks, Body: c.body, Header: http.Header{"Content-Type": {c.kind}}})
		if r := b.do("POST", c.path, key, `{"model":"tiny","messages":[{"role":"user","content":"x"}]`+c.fields+`}`); r.status != 200 || r.err != nil {
			t.Fatalf("%s: %d %v %s, want 200, nil", c.name, r.status, r.err, r.body)
		}
		row := b.row(preview)
		if got := row["completion_tokens"].(float64); got < c.least || got > c.most || row["prompt_tokens"] != 50. || row["estimated"] != false {
			t.Errorf("%s: booked %v and %v tokens, estimated %v, want 50 and %v to %v, counted", c.name, row["prompt_tokens"], got, row["estimated"], c.least, c.most)
		}
	}
}

// Ollama cuts a prompt to the context: a client that leaves does not pay for more.
func TestAPromptThatIsLeftIsBookedUpToTheContext(t *testing.T) {
	b := start(t, setup{})
	text := strings.Repeat("word ", 2000)
	for _, c := range []struct {
		path, body  string
		least, most float64
	}{
		{"/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"` + text + `"}]}`, 512, 512}, // its Modelfile has it
		{"/api/embed", `{"model":"tiny","input":["` + text + `","` + text + `"]}`, 1024, 1024},
		{"/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"` + text + `"}],"options":{"num_ctx":2600}}`, 2600, 2600},
	} {
		key, preview := b.key(`{"name":"leaves","role":"user"}`)
		b.ollama.Script("POST", c.path, ollamatest.Answer{HeaderGate: make(chan struct{})})
		n := len(b.ollama.RequestsTo("POST", c.path))
		leave := b.leave(c.path, key, c.body, false)
		b.ollama.WaitRequestTo(n+1, "POST", c.path)
		leave()
		b.until("its row", func() bool {
			return strings.Contains(b.do("GET", "/api/admin/requests?key="+preview, adminSecret, "").body, `"outcome":`)
		})
		if got := b.row(preview)["prompt_tokens"].(float64); got < c.least || got > c.most {
			t.Errorf("%s with %s: booked a prompt of %v tokens, want %v to %v", c.path, c.body[len(c.body)-25:], got, c.least, c.most)
		}
	}
}
