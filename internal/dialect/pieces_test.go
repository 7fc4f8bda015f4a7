package dialect

import (
	"fmt"
	"strings"
	"testing"
)

// A piece of an answer counts as one token, or by its bytes if it is longer, because a tool call comes in one piece.
func TestPiecesAreCountedByTheirBytes(t *testing.T) {
	long := strings.Repeat("word ", 1200) // 1,500 tokens
	for name, c := range map[string]struct {
		kind   Kind
		sse    bool
		record string // %s stands for the text
	}{
		"native text":     {Chat, false, `{"model":"tiny","created_at":"2026-11-24T10:00:00.123456789Z","message":{"role":"assistant","content":"%s"},"done":false}` + "\n"},
		"native thinking": {Chat, false, `{"model":"tiny","created_at":"2026-11-24T10:00:00.123456789Z","message":{"role":"assistant","content":"","thinking":"%s"},"done":false}` + "\n"},
		"native tool call": {Chat, false, `{"model":"tiny","created_at":"2026-11-24T10:00:00.1Z","message":{"role":"assistant","content":"",` +
			`"tool_calls":[{"function":{"name":"f","arguments":{"a":"%s"}}}]},"done":false}` + "\n"},
		"generate": {Generate, false, `{"model":"tiny","created_at":"2026-11-24T10:00:00.123456789Z","response":"%s","done":false}` + "\n"},
		"OpenAI text": {OpenAIChat, true, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","system_fingerprint":"fp_ollama",` +
			`"choices":[{"index":0,"delta":{"role":"assistant","content":"%s"},"finish_reason":null}]}` + "\n\n"},
		"OpenAI tool call": {OpenAIChat, true, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","system_fingerprint":"fp_ollama",` +
			`"choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_1","index":0,"type":"function","function":{"name":"f","arguments":"{\"a\":\"%s\"}"}}]},"finish_reason":null}]}` + "\n\n"},
		"Responses' arguments": {OpenAIResponses, true, "event: response.function_call_arguments.delta\ndata: " +
			`{"type":"response.function_call_arguments.delta","delta":"%s","item_id":"fc_1","output_index":0,"sequence_number":3}` + "\n\n"},
		"Anthropic's input": {AnthropicMessages, true, "event: content_block_delta\ndata: " +
			`{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"%s"}}` + "\n\n"},
	} {
		for _, first := range []bool{true, false} { // whether the long piece is the first
			m := NewMeter(c.kind, c.sse, false, "")
			words := 0
			if !first {
				for range 50 {
					_, _ = m.Feed(fmt.Appendf(nil, c.record, "word "))
					words++
				}
			}
			if _, err := m.Feed(fmt.Appendf(nil, c.record, long)); err != nil {
				t.Fatalf("%s: got error %v, want none", name, err)
			}
			if got, want := int(m.Tokens), words+1500; got < want*19/20 || got > want+60 && !strings.HasSuffix(name, "tool call") { // a call costs more than its arguments
				t.Errorf("%s, first %v: got %d tokens, want about %d", name, first, got, want)
			}
		}
	}
}

// Log probabilities are not tokens of an answer, not even in a record with a tool call.
func TestLogprobsAreNoTokens(t *testing.T) {
	one := `{"token":" the","logprob":-1.2345678,"bytes":[32,116,104,101]`
	logprobs := `[` + one + `,"top_logprobs":[` + strings.TrimSuffix(strings.Repeat(one+"},", 20), ",") + `]}]`
	const call = `[{"function":{"name":"f","arguments":{"a":"b"}}}]`
	for name, c := range map[string]struct {
		kind   Kind
		sse    bool
		record string
		most   int64
	}{
		"native":           {Chat, false, `{"model":"a","created_at":"2026-11-24T10:00:00Z","message":{"role":"assistant","content":" the"},"done":false,"logprobs":` + logprobs + "}\n", 1},
		"native tool call": {Chat, false, `{"model":"a","created_at":"2026-11-24T10:00:00Z","message":{"role":"assistant","content":"","tool_calls":` + call + `},"done":false,"logprobs":` + logprobs + "}\n", 15},
		"generate":         {Generate, false, `{"model":"a","created_at":"2026-11-24T10:00:00Z","response":" the","done":false,"logprobs":` + logprobs + "}\n", 1},
		"OpenAI": {OpenAIChat, true, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"a","system_fingerprint":"fp_ollama",` +
			`"choices":[{"index":0,"delta":{"role":"assistant","content":" the"},"logprobs":{"content":` + logprobs + `},"finish_reason":null}]}` + "\n\n", 1},
		"Responses": {OpenAIResponses, true, "event: response.output_text.delta\ndata: " +
			`{"type":"response.output_text.delta","delta":" the","item_id":"m","output_index":0,"content_index":0,"sequence_number":3,"logprobs":` + logprobs + "}\n\n", 1},
	} {
		m := NewMeter(c.kind, c.sse, false, "")
		const pieces = 10
		if _, err := m.Feed([]byte(strings.Repeat(c.record, pieces))); err != nil {
			t.Fatalf("%s: got error %v, want none", name, err)
		}
		if m.Tokens < pieces || m.Tokens > c.most*pieces {
			t.Errorf("%s: %d pieces count as %d tokens, want at most %d for each", name, pieces, m.Tokens, c.most)
		}
	}
}
