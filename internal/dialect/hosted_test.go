package dialect

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

// TestHostedTools checks what goes upstream for a key without allow_cloud: the tools that its client runs, and none that only the
// provider could run.
func TestHostedTools(t *testing.T) {
	const head = `{"model":"a","max_tokens":1,`
	for _, c := range []struct {
		name    string
		kind    Kind
		in, out string // fields of a body; out "" is in, "400" a refusal
		changes string // X-Policy
	}{
		{"web search", OpenAIResponses, `"tools":[{"type":"function","name":"f"},{"type":"web_search","external_web_access":false}],"tool_choice":"auto"`, `"tools":[{"type":"function","name":"f"}],"tool_choice":"auto"`, "tool web_search dropped"},
		{"first", OpenAIResponses, `"tools":[ {"type":"web_search"} , {"type":"function","name":"f"} , {"type":"mcp","server_url":"https://x"}]`, `"tools":[{"type":"function","name":"f"}]`, "tool web_search dropped, tool mcp dropped"},
		{"between", OpenAIResponses, `"tools":[1,{"type":"image_generation"},{"name":"g"},{"type":"code_interpreter"},{"type":"custom","name":"h"}]`, `"tools":[1,{"name":"g"},{"type":"custom","name":"h"}]`, "tool image_generation dropped, tool code_interpreter dropped"},
		{"several at the front", OpenAIResponses, `"tools":[{"type":"file_search"},{"type":"web_search_preview_2025_03_11"},{"name":"g"}]`, `"tools":[{"name":"g"}]`, "tool file_search dropped, tool web_search_preview_2025_03_11 dropped"},
		{"alone", OpenAIResponses, `"tools":[{"type":"web_search"}],"tool_choice":"required","store":false`, `"store":false`, "tool web_search dropped, tool_choice dropped"},
		{"a list of nothing", OpenAIResponses, `"tools":[],"tool_choice":"required"`, "", ""},
		{"escaped", OpenAIResponses, `"tools":[{"type":"web\u005fsearch"}],"x":1`, `"x":1`, "tool web_search dropped"},
		{"what the client runs", OpenAIResponses, `"tools":[{"type":"local_shell"},{"type":"apply_patch"},{"type":"tool_search","execution":"client"},{"type":"computer_use_preview"},{"type":null,"name":"f"},null]`, "", ""},
		{"a type that is not known", OpenAIResponses, `"tools":[{"type":"x_search"},{"type":"a\r\nb"},{"type":"\ud800"},{"name":"f"}]`, `"tools":[{"name":"f"}]`, "tool x_search dropped, a tool of an unknown type dropped"},
		{"a parameter of that name", OpenAIResponses, `"tools":[{"type":"function","name":"f","parameters":{"tools":[{"type":"web_search"}]}}]`, "", ""},

		{"in a namespace", OpenAIResponses, `"tools":[{"type":"namespace","name":"n","tools":[{"type":"web_search"},{"name":"g"}]}]`, `"tools":[{"type":"namespace","name":"n","tools":[{"name":"g"}]}]`, "tool web_search dropped"},
		{"alone in a namespace", OpenAIResponses, `"tools":[{"name":"g"},{"tools":[{"type":"web_search"}],"type":"namespace"}]`, `"tools":[{"name":"g"}]`, "tool web_search dropped"},
		{"deep", OpenAIResponses, `"tools":[{"type":"namespace","tools":[{"type":"namespace","tools":[{"type":"mcp"},{"name":"g"},{"type":"mcp"}]},{"type":"mcp"}]}]`, `"tools":[{"type":"namespace","tools":[{"type":"namespace","tools":[{"name":"g"}]}]}]`, "tool mcp dropped"},
		{"deeper than a stack", OpenAIResponses, `"tools":[` + strings.Repeat(`{"tools":[`, 4000) + `{"type":"mcp"}` + strings.Repeat(`]}`, 4000) + `],"x":1`, `"x":1`, "tool mcp dropped"},

		{"the choice of one", OpenAIResponses, `"tools":[{"name":"f"},{"type":"web_search"}],"tool_choice":{"type":"web_search"}`, `"tools":[{"name":"f"}]`, "tool web_search dropped, tool_choice dropped"},
		{"the choice of one that is not there", OpenAIResponses, `"tools":[{"name":"f"}],"tool_choice":{"type":"mcp","server_label":"x"}`, `"tools":[{"name":"f"}]`, "tool_choice dropped"},
		{"a choice of several", OpenAIResponses, `"tools":[{"name":"f"}],"tool_choice":{"type":"allowed_tools","mode":"required","tools":[{"type":"web_search"},{"type":"function","name":"f"}]}`, `"tools":[{"name":"f"}],"tool_choice":{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"f"}]}`, "tool web_search dropped"},
		{"a choice of a function", OpenAIChat, `"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"f"}}`, "", ""},

		{"chat", OpenAIChat, `"tools":[{"type":"web_search"},{"type":"function","function":{"name":"f"}}],"web_search_options":{}`, `"tools":[{"type":"function","function":{"name":"f"}}]`, "web_search_options dropped, tool web_search dropped"},
		{"a function by any type", OpenAIChat, `"tools":[{"type":"builtin_function","function":{"name":"$web_search"}}]`, "", ""},
		{"native", Chat, `"messages":[],"tools":[{"type":"web_search"},{"function":{"name":"f"}}]`, `"messages":[],"tools":[{"function":{"name":"f"}}]`, "tool web_search dropped"},

		{"messages", AnthropicMessages, `"tools":[{"name":"x","input_schema":{}},{"type":"web_search_20250305","name":"web_search"},{"type":"web_fetch_20250910","name":"web_fetch"},{"type":"code_execution_20250825","name":"code_execution"}]`, `"tools":[{"name":"x","input_schema":{}}]`, "tool web_search_20250305 dropped, tool web_fetch_20250910 dropped, tool code_execution_20250825 dropped"},
		{"the choice by name", AnthropicMessages, `"tools":[{"name":"x"},{"type":"web_search_20250305","name":"web_search"}],"tool_choice":{"type":"tool","name":"web_search"}`, `"tools":[{"name":"x"}]`, "tool web_search_20250305 dropped, tool_choice dropped"},
		{"the choice of a function with that name", AnthropicMessages, `"tools":[{"name":"web_search"},{"type":"web_search_20250305","name":"web_search"}],"tool_choice":{"type":"tool","name":"web_search"}`, `"tools":[{"name":"web_search"}],"tool_choice":{"type":"tool","name":"web_search"}`, "tool web_search_20250305 dropped"},
		{"any", AnthropicMessages, `"tools":[{"type":"web_search_20260209","name":"web_search"}],"tool_choice":{"type":"any"},"x":1`, `"x":1`, "tool web_search_20260209 dropped, tool_choice dropped"},
		{"servers", AnthropicMessages, `"mcp_servers":[{"type":"url","url":"https://x"}],"tools":[{"type":"mcp_toolset","mcp_server_name":"x"},{"type":"bash_20250124","name":"bash"},{"type":"text_editor_20250728","name":"e"},{"type":"memory_20250818","name":"memory"},{"type":"computer_20251124","name":"computer"}]`, `"tools":[{"type":"bash_20250124","name":"bash"},{"type":"text_editor_20250728","name":"e"},{"type":"memory_20250818","name":"memory"},{"type":"computer_20251124","name":"computer"}]`, "mcp_servers dropped, tool mcp_toolset dropped"},

		{"another spelling of type", AnthropicMessages, `"tools":[{"Type":"web_search_20250305"}]`, "400", ""},
		{"another spelling of tools", OpenAIResponses, `"tools":[{"type":"namespace","Tools":[{"type":"web_search"}]}]`, "400", ""},
		{"another spelling of the field", OpenAIResponses, `"Tools":[{"type":"web_search"}]`, "400", ""},
		{"twice", OpenAIResponses, `"tools":[{"type":"function","type":"web_search"}]`, "400", ""},
	} {
		body := head + c.in + "}"
		req, err := c.kind.Read(BodyOf([]byte(body)), &Terms{DropHosted: true})
		if c.out == "400" {
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeBadRequest {
				t.Errorf("%s: got error %v, want a refusal", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: got error %v, want none", c.name, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		want = head + want + "}"
		if c.kind == Chat {
			want = strings.Replace(`{"model":"a",`+strings.TrimPrefix(want, head), `}]}`, `}],"options":{"num_predict":1}}`, 1)
		}
		if got := strings.Join(req.Changes, ", "); req.Body.String() != want || got != c.changes {
			t.Errorf("%s\n sent %.300s\n got %.300s\n want %.300s\n got changes %q, want %q", c.name, body, req.Body, want, got, c.changes)
		}
		if req, err := c.kind.Read(BodyOf([]byte(body)), &Terms{}); err != nil || req.Changes != nil || c.kind != Chat && req.Body.String() != body {
			t.Errorf("%s with allow_cloud: got error %v, body %.300s, want the body unchanged", c.name, err, req.Body)
		}
	}
}

// nestedCuts returns a list in which each level cuts its first entry and keeps its second, around many entries that are cut. If a
// level moved the cuts of the levels within, the work would grow with the product of both.
func nestedCuts(levels, inner int) (body, want string) {
	const head = `{"model":"a","input":"x","tools":[`
	open, end := strings.Repeat(`{"tools":[`, levels), `{"name":"f"}`+strings.Repeat(`]}`, levels)+`]}`
	return head + strings.Repeat(`{"type":"m"},{"tools":[`, levels) + strings.Repeat(`{"type":"m"},`, inner) + end, head + open + end
}

// Cuts are noted in the order of the text. BenchmarkNestedCuts shows that none of them is moved.
func TestNestedCutsAreInOrder(t *testing.T) {
	body, _ := nestedCuts(3, 3)
	w := toolWalk{kind: OpenAIResponses, names: map[string]bool{}}
	if _, err := w.walk([]byte(body[strings.Index(body, "["):len(body)-1]), (*toolWalk).list); err != nil {
		t.Fatal(err)
	}
	if ordered := slices.IsSortedFunc(w.cuts, func(a, b span) int { return a.start - b.end }); !ordered || len(w.cuts) != 3*2+3+1 {
		t.Errorf("got %d cuts, in order %v; want %d in order", len(w.cuts), ordered, 3*2+3+1)
	}
	for _, size := range []struct{ levels, inner int }{{0, 3}, {1, 0}, {1, 1}, {3, 2}, {4900, 150_000}} {
		body, want := nestedCuts(size.levels, size.inner)
		req, err := OpenAIResponses.Read(BodyOf([]byte(body)), &Terms{DropHosted: true})
		if err != nil {
			t.Fatal(err)
		}
		if req.Body.String() != want {
			t.Errorf("%+v: got\n%.300s\nwant\n%.300s", size, req.Body, want)
		}
	}
}

// The time for each byte must not grow with the size.
func BenchmarkNestedCuts(b *testing.B) {
	for _, share := range []int{16, 4, 1} {
		body, _ := nestedCuts(4900/share, 150_000/share)
		b.Run(fmt.Sprintf("%dKB", len(body)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := OpenAIResponses.Read(BodyOf([]byte(body)), &Terms{DropHosted: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A header names only a few of the types that a client makes up.
func TestHostedToolsInAHeader(t *testing.T) {
	var tools []string
	for i := range 1000 {
		tools = append(tools, `{"type":"t`+strings.Repeat("x", i)+`"}`)
	}
	req, err := OpenAIResponses.Read(BodyOf([]byte(`{"model":"a","input":"x","tools":[`+strings.Join(tools, ",")+`]}`)), &Terms{DropHosted: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(strings.Join(req.Changes, ", ")); got > 250 || len(req.Changes) != maxNamed+1 {
		t.Errorf("got %d characters in %d changes, want a bounded list: %q", got, len(req.Changes), req.Changes)
	}
}

// A request of Codex goes to Ollama without the one tool that nothing here can run.
func TestCodexsRequest(t *testing.T) {
	body, err := os.ReadFile("../../testdata/codex-0.171.0.request.json")
	if err != nil {
		t.Fatal(err)
	}
	const search = `, {"type": "web_search", "external_web_access": false}`
	req, err := OpenAIResponses.Read(BodyOf(body), &Terms{DropHosted: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(strings.Replace(string(body), search, "", 1)); req.Body.String() != canonicalMembers(t, want) || len(req.Changes) != 1 || req.Changes[0] != "tool web_search dropped" {
		t.Errorf("got changes %q, body\n%s\nwant\n%s", req.Changes, req.Body, canonicalMembers(t, want))
	}
}

// canonicalMembers returns an object as an edit writes it: without the space between its members.
func canonicalMembers(t *testing.T, text string) string {
	t.Helper()
	o, err := BodyOf([]byte(text)).guard(names())
	if err != nil {
		t.Fatal(err)
	}
	e := edit{object: o, replaced: map[*member][]byte{}}
	return string(e.bytes())
}
