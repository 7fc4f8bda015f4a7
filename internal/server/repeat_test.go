package server_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

// repeating is a streaming route with the forms of its pieces. %s is the text as JSON.
type repeating struct {
	kind           dialect.Kind
	path, ask      string
	pieces         []string // text first, then thinking and tool arguments
	begin          []string
	sse            bool
	length, counts string // of the end
	lost           string // the form of an error that Ollama cannot report
}

func repeatingRoutes() []repeating {
	const native = `{"model":"tiny","created_at":"2026-11-23T12:59:03.5Z",`
	const chunk = `data: {"id":"chatcmpl-847","object":"chat.completion.chunk","created":1795438743,"model":"%s","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":%s},"finish_reason":null}]}` + "\n\n"
	piece := func(event, fields string) string {
		return "event: " + event + "\ndata: {" + fields + `,"sequence_number":SEQUENCE,"type":"` + event + "\"}\n\n"
	}
	delta := func(fields string) string {
		return `event: content_block_delta` + "\n" + `data: {"type":"content_block_delta","index":0,"delta":{` + fields + "}}\n\n"
	}
	chat := fmt.Sprintf(chunk, "tiny", "%s")
	return []repeating{
		{
			kind: dialect.Chat, path: "/api/chat", ask: `{"model":"tiny","messages":[{"role":"user","content":"four"}]}`,
			pieces: []string{native + `"message":{"role":"assistant","content":%s},"done":false}` + "\n", native + `"message":{"role":"assistant","content":"","thinking":%s},"done":false}` + "\n"},
			length: `"done":true,"done_reason":"length"`, counts: `"prompt_eval_count":`,
		},
		{
			kind: dialect.Generate, path: "/api/generate", ask: `{"model":"tiny","prompt":"four"}`,
			pieces: []string{native + `"response":%s,"done":false}` + "\n", native + `"response":"","thinking":%s,"done":false}` + "\n"},
			length: `"done":true,"done_reason":"length"`, counts: `"prompt_eval_count":`,
		},
		{
			kind: dialect.OpenAIChat, path: "/v1/chat/completions", ask: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"four"}]}`,
			pieces: []string{chat, strings.Replace(chat, `"content":`, `"content":"","reasoning":`, 1)}, sse: true,
			length: `"finish_reason":"length"`, counts: `"prompt_tokens":`, lost: fmt.Sprintf(chunk, "", `""`),
		},
		{
			kind: dialect.OpenAICompletions, path: "/v1/completions", ask: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true},"prompt":"four"}`,
			pieces: []string{`data: {"id":"cmpl-342","object":"text_completion","created":1795438743,"choices":[{"text":%s,"index":0,"finish_reason":null}],"model":"tiny",` +
				`"system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}` + "\n\n"}, sse: true,
			length: `"finish_reason":"length"`, counts: `"prompt_tokens":`,
		},
		{
			kind: dialect.OpenAIResponses, path: "/v1/responses", ask: `{"model":"tiny","stream":true,"input":"four"}`,
			begin: ollamatest.ResponseEvents("tiny", 17, 1)[:4],
			pieces: []string{
				piece("response.output_text.delta", `"content_index":0,"delta":%s,"item_id":"msg_310870","logprobs":[],"output_index":0`),
				piece("response.reasoning_summary_text.delta", `"delta":%s,"item_id":"rs_1","output_index":0,"summary_index":0`),
			}, sse: true,
			length: `"incomplete_details":{"reason":"max_output_tokens"}`, counts: `"input_tokens":`,
		},
		{
			kind: dialect.AnthropicMessages, path: "/v1/messages", ask: `{"model":"tiny","stream":true,"max_tokens":99,"messages":[{"role":"user","content":"four"}]}`,
			begin:  ollamatest.MessageEvents("tiny", 17, 1)[:2],
			pieces: []string{delta(`"type":"text_delta","text":%s`), delta(`"type":"thinking_delta","thinking":%s`), delta(`"type":"input_json_delta","partial_json":%s`)}, sse: true,
			length: `"stop_reason":"max_tokens"`, counts: `"input_tokens":`,
		},
	}
}

// stream returns an answer with these texts in the i-th form of a piece, without an end.
func (c *repeating) stream(i int, texts []string) []string {
	list := slices.Clone(c.begin)
	for _, text := range texts {
		quoted, _ := json.Marshal(text)
		record := strings.Replace(c.pieces[i], "%s", string(quoted), 1)
		list = append(list, strings.Replace(record, "SEQUENCE", fmt.Sprint(len(list)), 1))
	}
	return list
}

func (c *repeating) answer(chunks []string) ollamatest.Answer {
	kind := "application/x-ndjson"
	if c.sse {
		kind = "text/event-stream"
	}
	return ollamatest.Answer{Chunks: chunks, Header: map[string][]string{"Content-Type": {kind}}}
}

func times(n int, texts ...string) []string {
	return slices.Concat(slices.Repeat([][]string{texts}, n)...)
}

// When 32 tokens in a row would be the same except for white space around them, Ollama ends the answer properly but without its last
// record. The client gets the end of an answer that has reached its length, and the books have the tokens that were sent.
func TestOllamasRepeatLimitIsAnEnd(t *testing.T) {
	begun := []string{"they", " a", " fish"}
	for _, texts := range []struct {
		name string
		list []string
		end  bool
	}{
		{"31 equal pieces", slices.Concat(begun, times(31, " go")), true},
		{"31 equal pieces from the beginning", times(31, "go"), true},
		{"more of them", slices.Concat(begun, times(60, " go")), true},
		{"other white space around them", slices.Concat(begun, times(10, " go", "go\n", "\tgo "), []string{"go"}), true},
		{"quotes and other letters", slices.Concat(begun, times(31, ` "é\`)), true},
		{"white space", slices.Concat(begun, times(11, " ", "\n", "\t\u00a0")), true},
		{"30 times white space from the beginning", times(15, " ", "\n"), true},
		{"29 times white space from the beginning", append(times(14, " ", "\n"), " "), false},
		{"30 equal pieces", slices.Concat(begun, times(30, " go")), false},
		{"30 and another", slices.Concat(times(30, "go"), begun), false},
		{"31 and another", slices.Concat(times(31, "go"), []string{"they"}), false},
		{"two that take turns", times(40, "go", " they"), false},
		{"one piece", []string{"they"}, false},
	} {
		t.Run(texts.name, func(t *testing.T) {
			with := withAliases(t, "claude-*=tiny")
			with.servers = 2 // a server that fails three times in a row gets no more requests if there is another
			b := start(t, with)
			key, preview := b.key(`{"name":"repeat","role":"user","rate_limit":null}`)
			for _, c := range repeatingRoutes() {
				for i := range c.pieces {
					chunks := c.stream(i, texts.list)
					for _, split := range []int{0, 7} {
						a := c.answer(chunks)
						a.Split = split
						b.ollama.Script("POST", c.path, a)
						b.others[0].Script("POST", c.path, a)
						r := b.do("POST", c.path, key, strings.Replace(c.ask, `"tiny"`, `"claude-x"`, 1))
						if !texts.end {
							if !strings.Contains(r.body, endedEarly) || strings.Contains(r.body, c.length) || strings.Contains(r.body, "[DONE]") {
								t.Errorf("%s, piece %d: %v\n%s", c.path, i, r.err, r.body)
							}
							continue
						}
						c.checkEnd(t, b, preview, i, r, strings.Join(chunks, ""), len(texts.list))
					}
				}
			}
			if healthy := b.fleet.Healthy(); (healthy == 2) != texts.end {
				t.Errorf("got %d of 2 servers healthy, want 2", healthy)
			}
		})
	}
}

var modelOf = regexp.MustCompile(`"model":"[a-z-]*"`)

func (c *repeating) checkEnd(t *testing.T, b *bed, preview string, i int, r reply, passed string, pieces int) {
	t.Helper()
	passed = strings.ReplaceAll(passed, `"model":"tiny"`, `"model":"claude-x"`)
	end, ok := strings.CutPrefix(r.body, passed)
	if r.status != 200 || r.err != nil || !ok || strings.Count(end, c.length) != 1 || strings.Contains(end, "error\":{") {
		t.Fatalf("%s, piece %d: %d %v, behind what passed (%v)\n%s", c.path, i, r.status, r.err, ok, end)
	}
	for _, model := range modelOf.FindAllString(end, -1) {
		if model != `"model":"claude-x"` {
			t.Errorf("%s: the end has the model %s, want %s", c.path, model, `"model":"claude-x"`)
		}
	}
	m := dialect.NewMeter(c.kind, c.sse, false, "")
	if _, err := m.Feed([]byte(r.body)); err != nil || !m.Ended() {
		t.Fatalf("%s, piece %d: ended %v, %v\n%s", c.path, i, m.Ended(), err, end)
	}
	m.Finish()
	compare(t, fmt.Sprintf("%s, piece %d: %+v\n%s", c.path, i, m.Usage, end),
		fact{"m.Complete", m.Complete, true},
		fact{"m.Failed", m.Failed, false},
		fact{"m.Tokens", m.Tokens, int64(pieces)},
		fact{"m.Usage.CompletionTokens", m.Usage.CompletionTokens, int64(pieces)},
		fact{"m.Usage.PromptTokens < 1", m.Usage.PromptTokens < 1, false},
	)
	if row := b.row(preview); row["outcome"] != "ok" || row["estimated"] != true || row["completion_tokens"] != float64(pieces) || row["prompt_tokens"] != float64(m.Usage.PromptTokens) ||
		row["status"] != 200.0 || row["bytes_out"] != float64(len(r.body)) {
		t.Errorf("%s, piece %d: %v", c.path, i, row)
	}
	if c.kind == dialect.OpenAIResponses && !strings.Contains(end, "event: response.completed\n") {
		t.Errorf("Codex reports this end as an error: %s", end) // of response.incomplete
	}
}

// The stream contains usage only if the client asks for it.
func TestRepeatLimitWithoutUsage(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for _, c := range repeatingRoutes() {
		if !strings.Contains(c.ask, "include_usage") {
			continue
		}
		b.ollama.Script("POST", c.path, c.answer(c.stream(0, times(31, "go"))))
		r := b.do("POST", c.path, key, strings.Replace(c.ask, `"stream_options":{"include_usage":true},`, "", 1))
		if r.err != nil || strings.Contains(r.body, `"usage"`) || !strings.HasSuffix(r.body, "data: [DONE]\n\n") || !strings.Contains(r.body, c.length) {
			t.Errorf("%s: %v\n%s", c.path, r.err, r.body)
		}
	}
}

// Equal pieces do not hide a broken connection, an end that may be a break, or a failure that Ollama could not report.
func TestEqualPiecesAndAFailure(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for _, c := range repeatingRoutes() {
		chunks := c.stream(0, times(40, "go"))
		broken := map[string]ollamatest.Answer{}
		for name, change := range map[string]func(*ollamatest.Answer){
			"closed":    func(a *ollamatest.Answer) { a.Fault, a.FaultAt = ollamatest.Close, ollamatest.AtEnd },
			"reset":     func(a *ollamatest.Answer) { a.Fault, a.FaultAt = ollamatest.Reset, ollamatest.AtEnd },
			"unframed":  func(a *ollamatest.Answer) { a.UntilClose = true },
			"a part":    func(a *ollamatest.Answer) { a.Chunks = append(slices.Clone(chunks), chunks[len(chunks)-1][:20]) },
			"no text":   func(a *ollamatest.Answer) { a.Chunks = append(slices.Clone(chunks), c.stream(0, []string{""})...) },
			"a failure": func(a *ollamatest.Answer) { a.Chunks = append(slices.Clone(chunks), c.lost) },
		} {
			a := c.answer(chunks)
			change(&a)
			if name == "a failure" && c.lost == "" || name == "no text" && c.begin != nil {
				continue
			}
			broken[name] = a
		}
		for name, a := range broken {
			b.ollama.Script("POST", c.path, a)
			if r := b.do("POST", c.path, key, c.ask); !strings.Contains(r.body, "try again") || strings.Contains(r.body, c.length) {
				t.Errorf("%s, %s: %v\n%s", c.path, name, r.err, r.body[max(0, len(r.body)-700):])
			}
		}
	}
}

// At its repeat limit, Ollama's answer in one piece has no counts, or zeros. The books estimate the tokens and mark the estimate. An answer
// without text has used no tokens.
func TestWholeAnswerWithoutCounts(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"whole","role":"user","rate_limit":null}`)
	const text = "twelve chars"
	for _, c := range []struct {
		path, ask, body string
		tokens          float64
	}{
		{"/api/chat", `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"four"}]}`, `{"model":"tiny","message":{"role":"assistant","content":"` + text + `"},"done":false}`, 3},
		{"/api/chat", `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"four"}]}`, `{"model":"tiny","message":{"role":"assistant","content":"","thinking":"` + text + `"},"done":false}`, 3},
		{
			"/api/chat", `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"four"}]}`,
			`{"model":"tiny","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"look","arguments":{"at":{"it":"` + text + `"}}}}]},"done":false}`, 3,
		},
		{"/api/generate", `{"model":"tiny","stream":false,"prompt":"four"}`, `{"model":"tiny","response":"` + text + `","done":false}`, 3},
		{
			"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"four"}]}`,
			`{"id":"c","object":"chat.completion","model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"` + text + `"},"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`, 3,
		},
		{
			"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"four"}]}`,
			`{"id":"c","object":"chat.completion","model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"` + text + `"},"finish_reason":null}]}`, 3,
		},
		{
			"/v1/completions", `{"model":"tiny","prompt":"four"}`,
			`{"id":"c","object":"text_completion","model":"tiny","choices":[{"text":"` + text + `","index":0,"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`, 3,
		},
		{
			"/v1/responses", `{"model":"tiny","input":"four"}`,
			`{"id":"r","object":"response","status":"completed","model":"tiny","instructions":"not what the model wrote","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"` + text + `"}]}],"usage":{"input_tokens":0,"output_tokens":0,"total_tokens":0}}`, 3,
		},
		{
			"/v1/messages", `{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":"four"}]}`,
			`{"id":"m","type":"message","role":"assistant","model":"tiny","content":[{"type":"text","text":"` + text + `"}],"stop_reason":null,"usage":{"input_tokens":0,"output_tokens":0}}`, 3,
		},
		{"/api/generate", `{"model":"tiny","stream":false,"prompt":""}`, `{"model":"tiny","response":"","done":true,"done_reason":"load"}`, 0},
		{"/api/chat", `{"model":"tiny","stream":false,"messages":[]}`, `{"model":"tiny","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}`, 0},
	} {
		b.ollama.Script("POST", c.path, ollamatest.Answer{Body: c.body, Header: map[string][]string{"Content-Type": {"application/json"}}})
		r := b.do("POST", c.path, key, c.ask)
		row := b.row(preview)
		compare(t, fmt.Sprintf("%s answered %s: %d, booked %v", c.path, c.body, r.status, row),
			fact{"r.status", r.status, 200},
			fact{`row["outcome"]`, row["outcome"], "ok"},
			fact{`row["completion_tokens"]`, row["completion_tokens"], c.tokens},
			fact{`(row["estimated"] == true)`, (row["estimated"] == true), (c.tokens > 0)},
			fact{`(row["prompt_tokens"].(float64) > 0)`, (row["prompt_tokens"].(float64) > 0), (c.tokens > 0)},
		)
	}
}

// If the end of a stream with text has zeros, the tokens are estimated too.
func TestStreamWithZeroCounts(t *testing.T) {
	b := start(t, setup{})
	key, preview := b.key(`{"name":"zero","role":"user","rate_limit":null}`)
	for _, f := range flows() {
		end := strings.Join(f.end, "")
		for _, name := range []string{"prompt_eval_count", "eval_count", "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"} {
			end = regexp.MustCompile(`"`+name+`":\d+`).ReplaceAllString(end, `"`+name+`":0`)
		}
		b.ollama.Script("POST", f.path, f.chunked(append(slices.Clone(f.open), end)...))
		r := b.do("POST", f.path, key, strings.Replace(f.request, "%q", `"four"`, 1))
		_, _, tokens := f.seen(strings.Join(f.open, ""))
		if row := b.row(preview); r.status != 200 || r.err != nil || row["outcome"] != "ok" || row["estimated"] != true || row["completion_tokens"] != float64(tokens) || tokens == 0 {
			t.Errorf("%s: %d %v, %v", f.name, r.status, r.err, row)
		}
	}
}
