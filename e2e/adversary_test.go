package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// assault is a request of an adversary: what it sends, and when it leaves.
type assault struct {
	form   string
	path   string
	body   string
	silent bool // nothing of the answer comes before its end
	plain  bool // Ollama generates an answer, and one prompt is evaluated
	leave  leave
	after  int // records, or pieces of half a millisecond where the answer is silent
}

// leave is when a client leaves.
type leave int

const (
	stays      leave = iota // it reads the answer to the end
	atOnce                  // as soon as the body is sent
	inPrompt                // when Ollama evaluates the prompt
	afterFew                // after up to three records
	midAnswer               // anywhere
	manyLeaves = iota
)

var leaveNames = [...]string{"stays", "at once", "in the prompt", "after a few records", "in mid-answer"}

// alphabets are what an adversary writes, each with another price for a token.
var alphabets = [...]string{
	"the a model answers with plain words because tiny weights cannot think but they can stream tokens",
	"it was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness",
	"abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", "0123456789", "0123456789abcdef",
	"!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "q z x j ", "! ? ; ", "的一是不了人我在有他这为之大来以个中上们", "뷁뛟쀍쫡쭑뙗꿟힣", "😀🤣🙏🪿🫨𓀀", "ąćęłńóśźżÅÆØ", "འགྲོབམིའིརིགས", "\n\t\r ", "\u0001\u0002\u001b",
}

// adversary makes requests from a seed.
type adversary struct {
	*rand.Rand
	turn int
}

// text is at least 20 bytes and at most about most: one alphabet, or words of its list.
func (a *adversary) text(most int) string {
	size := 20 + a.IntN(most)
	alphabet := alphabets[a.IntN(len(alphabets))]
	var b strings.Builder
	if words := strings.Fields(alphabet); len(words) > 8 {
		for b.Len() < size {
			b.WriteString(words[a.IntN(len(words))] + " ")
		}
		return b.String()
	}
	runes := []rune(alphabet)
	for b.Len() < size {
		b.WriteRune(runes[a.IntN(len(runes))])
	}
	return "w" + b.String() // never only white space, of which Ollama makes an empty prompt
}

type values = map[string]any

// data is an object of the client's own: arguments, parameters.
func (a *adversary) data(most int) values {
	f := values{}
	for range 1 + a.IntN(4) {
		f[a.text(20)] = []any{a.text(most / 4), a.IntN(1 << 30), values{"content": a.text(most / 8), "name": true}}
	}
	return f
}

func (a *adversary) messages(n, most int) []any {
	var list []any
	for i := range n {
		role := "user"
		if i%2 == 1 {
			role = "assistant"
		}
		list = append(list, values{"role": role, "content": a.text(most)})
	}
	return list
}

func (a *adversary) tools(most int) []any {
	return []any{values{"type": "function", "function": values{"name": "look_up", "description": a.text(most), "parameters": values{
		"type": "object", "required": []string{"what"}, "properties": values{a.text(20): values{"type": "string", "description": a.text(most)}},
	}}}}
}

// forms are what it sends; each fills in a body, and says where it goes.
var forms = []struct {
	name string
	make func(a *adversary, b values) (path string)
}{
	{"chat", func(a *adversary, b values) string { b["messages"] = a.messages(1+a.IntN(3), 800); return "/api/chat" }},
	{"many short messages", func(a *adversary, b values) string { b["messages"] = a.messages(20+a.IntN(60), 2); return "/api/chat" }},
	{"generate", func(a *adversary, b values) string {
		b["prompt"], b["system"] = a.text(800), a.text(400)
		return "/api/generate"
	}},
	{"suffix", func(a *adversary, b values) string {
		b["prompt"], b["suffix"] = a.text(400), a.text(800)
		return "/api/generate"
	}},
	{"template", func(a *adversary, b values) string {
		b["prompt"], b["template"] = a.text(200), a.text(600)+"{{ range .Messages }}{{ .Content }}{{ end }}"
		return "/api/generate"
	}},
	{"raw", func(a *adversary, b values) string {
		b["prompt"], b["raw"] = a.text(1500), true
		return "/api/generate"
	}},
	{"context", func(a *adversary, b values) string {
		var ids []int
		for range 20 + a.IntN(400) {
			ids = append(ids, 3+a.IntN(300))
		}
		b["prompt"], b["context"] = a.text(100), ids
		return "/api/generate"
	}},
	{"tools", func(a *adversary, b values) string {
		b["messages"], b["tools"] = a.messages(1, 100), a.tools(500)
		return "/api/chat"
	}},
	{"tool results", func(a *adversary, b values) string {
		b["messages"] = append(a.messages(1, 50),
			values{"role": "assistant", "content": "", "tool_calls": []any{values{"function": values{"name": "look_up", "arguments": a.data(400)}}}},
			values{"role": "tool", "tool_name": "look_up", "content": a.text(800)})
		return "/api/chat"
	}},
	{"thinking", func(a *adversary, b values) string {
		b["messages"] = append(a.messages(1, 300), values{"role": "assistant", "thinking": a.text(300), "content": a.text(300)}, values{"role": "user", "content": a.text(100)})
		return "/api/chat"
	}},
	{"images", func(a *adversary, b values) string {
		b["messages"] = []any{values{"role": "user", "content": a.text(400), "images": []string{"iVBORw0KGgo="}}}
		return "/api/chat"
	}},
	{"schema", func(a *adversary, b values) string {
		b["messages"] = a.messages(1, 300)
		b["format"] = values{"type": "object", "properties": values{"a": values{"type": "string"}}, "required": []string{"a"}}
		return "/api/chat"
	}},
	{"longer than the context", func(a *adversary, b values) string {
		b["messages"] = a.messages(1, 9000)
		return "/api/chat"
	}},
	{"OpenAI chat", func(a *adversary, b values) string {
		b["messages"] = []any{values{"role": "system", "content": a.text(300)}, values{"role": "user", "content": []any{values{"type": "text", "text": a.text(600)}}}}
		return "/v1/chat/completions"
	}},
	{"OpenAI completions", func(a *adversary, b values) string { b["prompt"] = a.text(900); return "/v1/completions" }},
	{"embed", func(a *adversary, b values) string {
		var list []string
		for range 1 + a.IntN(8) {
			list = append(list, a.text(200))
		}
		b["input"] = list
		return "/api/embed"
	}},
	{"embeddings", func(a *adversary, b values) string { b["prompt"] = a.text(600); return "/api/embeddings" }},
	{"folded names", func(a *adversary, b values) string {
		name := []string{"Content", "CONTENT", `c\u006fntent`, "contenT"}[a.IntN(4)]
		b["messages"] = json.RawMessage(fmt.Sprintf(`[{"role":"user","%s":%q}]`, name, strings.Repeat("hello ", 20+a.IntN(60))))
		return "/api/chat"
	}},
}

// next is the next assault for a model: the forms in turn, everything else by chance.
func (a *adversary) next(model string) assault {
	f := forms[a.turn%len(forms)]
	a.turn++
	b := values{"model": model}
	t := assault{form: f.name, path: f.make(a, b), leave: leave(a.IntN(manyLeaves)), after: 1 + a.IntN(3)}
	most := 16 + a.IntN(80)
	stream := a.IntN(3) > 0
	switch {
	case strings.HasPrefix(t.path, "/api/embed"):
		stream = false
	case strings.HasPrefix(t.path, "/v1/"):
		b["max_tokens"], b["stream"], t.plain = most, stream, true
	default:
		b["options"], b["stream"], t.plain = values{"num_predict": most}, stream, true
	}
	if t.leave == midAnswer {
		t.after = 4 + a.IntN(most)
	}
	t.silent = !stream || b["tools"] != nil
	body, err := json.Marshal(b)
	if err != nil {
		panic(err)
	}
	t.body = string(body)
	return t
}
