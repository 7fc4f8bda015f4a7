package dialect

import "testing"

func TestFinishReason(t *testing.T) {
	for _, c := range []struct{ name, end, want string }{
		{"a native line", `{"model":"m","message":{"content":"{\"done_reason\":\"length\"}"},"done":true,"done_reason":"stop"}` + "\n", "stop"},
		{"a native answer", `{"response":"x","done":true,"done_reason":"length","context":[1,2]}`, "length"},
		{"OpenAI's last chunks", `data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}` + "\n\n" + `data: {"choices":[],"usage":{"prompt_tokens":1}}` + "\n\ndata: [DONE]\n\n", "tool_calls"},
		{"OpenAI's answer", `{"object":"chat.completion","choices":[{"finish_reason":"stop","message":{"content":"x"}}]}`, "stop"},
		{"Responses' end", "event: response.completed\ndata: " + `{"type":"response.completed","response":{"status":"completed","output":[{"status":"failed"}]}}` + "\n\n", "completed"},
		{"Responses cut", "event: response.incomplete\ndata: " + `{"response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}` + "\n\n", "max_output_tokens"},
		{"Responses' answer", `{"object":"response","status":"completed","incomplete_details":null}`, "completed"},
		{"Anthropic's end", "event: message_delta\ndata: " + `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}` + "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", "end_turn"},
		{"Anthropic's answer", `{"type":"message","stop_reason":"max_tokens","content":[]}`, "max_tokens"},
		{"a pull", `{"status":"success"}` + "\n", ""},
		{"an embedding", `{"embeddings":[[1]],"prompt_eval_count":2}`, ""},
		{"an unknown reason", `{"done":true,"done_reason":"tell me a secret"}`, ""},
		{"one of another type", `{"done":true,"done_reason":{"stop":1},"stop_reason":"end_turn"}`, "end_turn"},
		{"nothing", "", ""},
		{"no JSON", "<html>done_reason: stop</html>", ""},
	} {
		if got := FinishReason([]byte(c.end)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
