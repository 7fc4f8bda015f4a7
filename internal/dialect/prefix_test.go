package dialect

import (
	"strings"
	"testing"
)

func prefixOf(t *testing.T, k Kind, body string) uint64 {
	t.Helper()
	req, err := k.Read(BodyOf([]byte(body)), &Terms{})
	if err != nil {
		t.Fatal(err)
	}
	return req.Prefix
}

// The turns of one conversation have the same prefix, with any spelling of the JSON. Other conversations have another one.
func TestPrefixTellsConversationsApart(t *testing.T) {
	picture := strings.Repeat("iVBORw0KGgo", 20_000)
	for name, c := range map[string]struct {
		kind         Kind
		alike, other []string
	}{
		"chat": {Chat, []string{
			`{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}]}`,
			`{"model":"m","messages":[{"role":"system","content":"be brief"}, {"content":"hello","role":"user"}, {"role":"assistant","content":"hi"},{"role":"user","content":"more"}]}`,
			`{"options":{"seed":1},"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"},{"role":"assistant","content":"hi"}],"model":"m"}`,
		}, []string{
			`{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"good day"}]}`,
			`{"model":"m","messages":[{"role":"system","content":"be long"},{"role":"user","content":"hello"}]}`,
			`{"model":"m","messages":[{"role":"user","content":"hello"}]}`,
			`{"model":"m","messages":[{"role":"system","content":"be briefh"},{"role":"user","content":"ello"}]}`,
			`{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello","images":["` + picture + `"]}]}`,
			`{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello","images":["` + strings.Replace(picture, "i", "j", 1) + `"]}]}`,
		}},
		"messages": {AnthropicMessages, []string{
			`{"model":"m","max_tokens":9,"system":[{"type":"text","text":"be brief"}],"messages":[{"role":"user","content":[{"type":"text","text":"hello","cache_control":{"type":"ephemeral"}}]}]}`,
			`{"model":"m","max_tokens":9,"system":[{"type":"text","text":"be brief","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"hi"},{"role":"user","content":[{"type":"text","text":"more","cache_control":{"type":"ephemeral"}}]}]}`,
		}, []string{
			`{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}]}`,
			`{"model":"m","max_tokens":9,"system":"hello","messages":[{"role":"user","content":"be brief"}]}`,
		}},
		"responses": {OpenAIResponses, []string{
			`{"model":"m","instructions":"be brief","input":"hello"}`,
			`{"model":"m","instructions":"be brief","input":[{"role":"user","content":[{"type":"input_text","text":"hello"}]},{"role":"assistant","content":"hi"}]}`,
		}, []string{`{"model":"m","input":"hello"}`, `{"model":"m","instructions":"be brief","input":"hello there"}`}},
		"generate": {Generate, []string{
			`{"model":"m","prompt":"` + strings.Repeat("a", 300) + `"}`,
			`{"model":"m","prompt":"` + strings.Repeat("a", 300) + ` and more"}`,
		}, []string{`{"model":"m","prompt":"b` + strings.Repeat("a", 300) + `"}`, `{"model":"m","system":"s","prompt":"` + strings.Repeat("a", 300) + `"}`}},
	} {
		first := prefixOf(t, c.kind, c.alike[0])
		if first == 0 {
			t.Errorf("%s: got no prefix, want one", name)
		}
		for _, body := range c.alike[1:] {
			if prefixOf(t, c.kind, body) != first {
				t.Errorf("%s: a later turn has another prefix, want the same: %.200s", name, body)
			}
		}
		seen := map[uint64]string{first: c.alike[0]}
		for _, body := range c.other {
			got := prefixOf(t, c.kind, body)
			if twin, ok := seen[got]; ok {
				t.Errorf("%s: got the same prefix, want different ones, for %.200s and %.200s", name, body, twin)
			}
			seen[got] = body
		}
	}
	for kind, body := range map[Kind]string{Embed: `{"model":"m","input":"hello"}`, Chat: `{"model":"m","messages":[]}`, Generate: `{"model":"m"}`} {
		if got := prefixOf(t, kind, body); got != 0 {
			t.Errorf("%s: got a prefix, want none", body)
		}
	}
}
