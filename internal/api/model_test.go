package api

import "testing"

func TestAliases(t *testing.T) {
	var list Aliases
	for _, text := range []string{"claude-*=qwen3-coder", " gpt-4o = Llama3.2:3B", "org/*:*=tiny"} {
		a, err := ParseAlias(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		list = append(list, a)
	}
	for asked, want := range map[string]string{
		"claude-opus-4-1": "qwen3-coder", "Claude-X:latest": "qwen3-coder", "gpt-4o": "Llama3.2:3B", "org/any:thing": "tiny",
		"claude": "", "claude-x:8b": "", "gpt-4o-mini": "", "other/claude-x": "", "qwen3-coder": "",
	} {
		m, _, err := ParseModel(asked)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := list.Resolve(m); a.Plain != want || ok != (want != "") {
			t.Errorf("%s leads to %q, want %q", asked, a.Plain, want)
		}
	}
	if m := list[1].Model; m.String() != "llama3.2:3b" || len(list.Named(m)) != 1 || list.Named(m)[0] != "gpt-4o" {
		t.Errorf("the names of %s are %q, want %q, 1 of them, %q", m, list.Named(m), "llama3.2:3b", "gpt-4o")
	}
	if got := list.Named(list[0].Model); got != nil {
		t.Errorf("the list contains an alias with a star: %q", got)
	}
	for _, text := range []string{"", "a", "=b", "a=", "*=b", "a=b*", "a=b=c", "../x=b", "a=b c"} {
		if a, err := ParseAlias(text); err == nil {
			t.Errorf("%q became %s, want an error", text, a)
		}
	}
}
