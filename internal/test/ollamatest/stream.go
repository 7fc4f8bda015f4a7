package ollamatest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// recordedPrompt is the number of prompt tokens in the recordings.
const recordedPrompt = 17

var words = strings.Fields("they two seven road moon can blue the stream sun bird fish a eight sky tree")

// Word is the i-th word of every generated answer, with a leading space.
func Word(i int) string { return " " + words[i%len(words)] }

// Text is the complete text of a generated answer.
func Text(tokens int) string {
	var b strings.Builder
	for i := range tokens {
		b.WriteString(Word(i))
	}
	return b.String()
}

func quote(s string) string {
	q, _ := json.Marshal(s)
	return string(q)
}

const (
	createdAt = "2026-11-23T12:59:03.526085017Z"
	created   = 1795438743
)

func nativeUsage(prompt, tokens int) string {
	return fmt.Sprintf(`"total_duration":19947500,"load_duration":1549447,"prompt_eval_count":%d,"prompt_eval_duration":229701,"eval_count":%d,"eval_duration":17033099}`, prompt, tokens)
}

func openAIUsage(prompt, tokens int) string {
	return fmt.Sprintf(`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, prompt, tokens, prompt+tokens)
}

// ChatLines is a streamed /api/chat: a line for each token, then the done line. model is used as given.
func ChatLines(model string, prompt, tokens int) []string {
	head := fmt.Sprintf(`{"model":%s,"created_at":"%s","message":{"role":"assistant","content":`, quote(model), createdAt)
	var lines []string
	for i := range tokens {
		lines = append(lines, head+quote(Word(i))+`},"done":false}`+"\n")
	}
	return append(lines, head+`""},"done":true,"done_reason":"length",`+nativeUsage(prompt, tokens)+"\n")
}

// GenerateLines is a streamed /api/generate. Its done line contains the context, like Ollama's.
func GenerateLines(model string, prompt, tokens int) []string {
	head := fmt.Sprintf(`{"model":%s,"created_at":"%s","response":`, quote(model), createdAt)
	var lines []string
	for i := range tokens {
		lines = append(lines, head+quote(Word(i))+`,"done":false}`+"\n")
	}
	context := strings.TrimSuffix(strings.Repeat("387,", prompt+tokens), ",")
	return append(lines, head+`"","done":true,"done_reason":"length","context":[`+context+`],`+nativeUsage(prompt, tokens)+"\n")
}

// ChatEvents is a streamed /v1/chat/completions: an event for each token, then, in one chunk, the finish event, the usage event if usage
// was requested, and "[DONE]".
func ChatEvents(model string, prompt, tokens int, usage bool) []string {
	head := fmt.Sprintf(`data: {"id":"chatcmpl-847","object":"chat.completion.chunk","created":%d,"model":%s,"system_fingerprint":"fp_ollama","choices":[`, created, quote(model))
	delta := func(text, finish string) string {
		return head + `{"index":0,"delta":{"role":"assistant","content":` + quote(text) + `},"finish_reason":` + finish + "}]}\n\n"
	}
	var events []string
	for i := range tokens {
		events = append(events, delta(Word(i), "null"))
	}
	last := delta("", `"length"`)
	if usage {
		last += head + `],` + openAIUsage(prompt, tokens) + "}\n\n"
	}
	return append(events, last+"data: [DONE]\n\n")
}

// CompletionEvents is a streamed /v1/completions. If usage was requested, every event contains a zero usage, and the event without
// choices the real one.
func CompletionEvents(model string, prompt, tokens int, usage bool) []string {
	head := fmt.Sprintf(`data: {"id":"cmpl-342","object":"text_completion","created":%d,"choices":[`, created)
	tail := fmt.Sprintf(`],"model":%s,"system_fingerprint":"fp_ollama"`, quote(model))
	zero := ""
	if usage {
		zero = "," + openAIUsage(0, 0)
	}
	event := func(text, finish string) string {
		return head + `{"text":` + quote(text) + `,"index":0,"finish_reason":` + finish + `}` + tail + zero + "}\n\n"
	}
	var events []string
	for i := range tokens {
		events = append(events, event(Word(i), "null"))
	}
	last := event("", `"length"`)
	if usage {
		last += head + tail + "," + openAIUsage(prompt, tokens) + "}\n\n"
	}
	return append(events, last+"data: [DONE]\n\n")
}

// MessageEvents is a streamed /v1/messages. The real usage is in message_delta; message_start contains only a guess.
func MessageEvents(model string, prompt, tokens int) []string {
	event := func(name, rest string) string {
		return "event: " + name + "\ndata: {\"type\":\"" + name + "\"" + rest + "}\n\n"
	}
	events := []string{
		event("message_start", `,"message":{"id":"msg_bb7a111c2568406e3d15338d","type":"message","role":"assistant","model":`+quote(model)+`,"content":[],"usage":{"input_tokens":2,"output_tokens":0}}`),
		event("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`),
	}
	for i := range tokens {
		events = append(events, event("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":`+quote(Word(i))+`}`))
	}
	return append(events,
		event("content_block_stop", `,"index":0`),
		event("message_delta", fmt.Sprintf(`,"delta":{"stop_reason":"max_tokens"},"usage":{"input_tokens":%d,"output_tokens":%d}`, prompt, tokens)),
		event("message_stop", ""))
}

// ResponseEvents is a streamed /v1/responses: response.completed repeats the whole answer, with the usage.
func ResponseEvents(model string, prompt, tokens int) []string {
	var events []string
	event := func(name, rest string) {
		events = append(events, fmt.Sprintf("event: %s\ndata: {%s,\"sequence_number\":%d,\"type\":\"%s\"}\n\n", name, rest, len(events), name))
	}
	const begun = `"item":{"content":[],"id":"msg_310870","role":"assistant","status":"in_progress","type":"message"},"output_index":0`
	part := func(text string) string {
		return `{"annotations":[],"logprobs":[],"text":` + quote(text) + `,"type":"output_text"}`
	}
	const place = `"content_index":0,"item_id":"msg_310870","output_index":0`
	item := `{"content":[` + part(Text(tokens)) + `],"id":"msg_310870","role":"assistant","status":"completed","type":"message"}`
	event("response.created", `"response":`+response(model, "in_progress", "", "null"))
	event("response.in_progress", `"response":`+response(model, "in_progress", "", "null"))
	event("response.output_item.added", begun)
	event("response.content_part.added", place+`,"part":`+part(""))
	for i := range tokens {
		event("response.output_text.delta", place+`,"delta":`+quote(Word(i))+`,"logprobs":[]`)
	}
	event("response.output_text.done", place+`,"logprobs":[],"text":`+quote(Text(tokens)))
	event("response.content_part.done", place+`,"part":`+part(Text(tokens)))
	event("response.output_item.done", `"item":`+item+`,"output_index":0`)
	event("response.completed", `"response":`+response(model, "completed", item, responseUsage(prompt, tokens)))
	return events
}

func response(model, status, output, usage string) string {
	return fmt.Sprintf(`{"id":"resp_312023","object":"response","created_at":%d,"status":"%s","error":null,"incomplete_details":null,"instructions":null,`+
		`"max_output_tokens":null,"metadata":{},"model":%s,"output":[%s],"parallel_tool_calls":true,"temperature":1,"text":{"format":{"type":"text"}},`+
		`"tool_choice":"auto","tools":[],"top_p":1,"truncation":"disabled","usage":%s}`, created, status, quote(model), output, usage)
}

func responseUsage(prompt, tokens int) string {
	return fmt.Sprintf(`{"input_tokens":%d,"input_tokens_details":{"cached_tokens":0},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d}`,
		prompt, tokens, prompt+tokens)
}

// generated is an answer of a.Tokens words in the format that the request asks for.
func generated(r *Request, a Answer) Answer {
	b, err := readRequest(r)
	if err != nil {
		return failure(r.Path, http.StatusBadRequest, err.Error())
	}
	prompt := a.PromptTokens
	if prompt == 0 {
		prompt = recordedPrompt
	}
	if !b.streams(r.Path) {
		return generatedWhole(r.Path, b.Model, prompt, a.Tokens)
	}
	var chunks []string
	terminal := 1
	kind := "text/event-stream"
	switch r.Path {
	case "/api/chat":
		chunks, kind = ChatLines(b.Model, prompt, a.Tokens), "application/x-ndjson"
	case "/api/generate":
		chunks, kind = GenerateLines(b.Model, prompt, a.Tokens), "application/x-ndjson"
	case "/v1/chat/completions":
		chunks = ChatEvents(b.Model, prompt, a.Tokens, b.usage())
	case "/v1/completions":
		chunks = CompletionEvents(b.Model, prompt, a.Tokens, b.usage())
	case "/v1/responses":
		chunks = ResponseEvents(b.Model, prompt, a.Tokens)
	case "/v1/messages":
		chunks, terminal = MessageEvents(b.Model, prompt, a.Tokens), 2
	default:
		panic("ollamatest: no generated stream for " + r.Path)
	}
	if a.NoTerminal {
		chunks = chunks[:len(chunks)-terminal]
	}
	return Answer{Chunks: chunks, Header: http.Header{"Content-Type": {kind}}}
}

func generatedWhole(path, model string, prompt, tokens int) Answer {
	native := http.Header{"Content-Type": {"application/json; charset=utf-8"}}
	v1 := http.Header{"Content-Type": {"application/json"}}
	name, text := quote(model), quote(Text(tokens))
	switch path {
	case "/api/chat":
		return Answer{Header: native, Body: fmt.Sprintf(`{"model":%s,"created_at":"%s","message":{"role":"assistant","content":%s},"done":true,"done_reason":"length",%s`,
			name, createdAt, text, nativeUsage(prompt, tokens))}
	case "/api/generate":
		return Answer{Header: native, Body: fmt.Sprintf(`{"model":%s,"created_at":"%s","response":%s,"done":true,"done_reason":"length","context":[387],%s`,
			name, createdAt, text, nativeUsage(prompt, tokens))}
	case "/v1/chat/completions":
		return Answer{Header: v1, Body: fmt.Sprintf(`{"id":"chatcmpl-794","object":"chat.completion","created":%d,"model":%s,"system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":%s},"finish_reason":"length"}],%s}`+"\n",
			created, name, text, openAIUsage(prompt, tokens))}
	case "/v1/completions":
		return Answer{Header: v1, Body: fmt.Sprintf(`{"id":"cmpl-841","object":"text_completion","created":%d,"model":%s,"system_fingerprint":"fp_ollama","choices":[{"text":%s,"index":0,"finish_reason":"length"}],%s}`+"\n",
			created, name, text, openAIUsage(prompt, tokens))}
	case "/v1/responses":
		item := `{"id":"msg_622635","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":` + text + `,"annotations":[],"logprobs":[]}]}`
		return Answer{Header: v1, Body: response(model, "completed", item, responseUsage(prompt, tokens)) + "\n"}
	case "/v1/messages":
		return Answer{Header: v1, Body: fmt.Sprintf(`{"id":"msg_c90334e269b618347bfad83a","type":"message","role":"assistant","model":%s,"content":[{"type":"text","text":%s}],"stop_reason":"max_tokens","usage":{"input_tokens":%d,"output_tokens":%d}}`+"\n",
			name, text, prompt, tokens)}
	}
	panic("ollamatest: no generated answer for " + path)
}
