package dialect

import (
	"errors"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

func TestRefusedBodies(t *testing.T) {
	deep := strings.Repeat("[", 10001) + strings.Repeat("]", 10001)
	for name, body := range map[string]string{
		"duplicate":            `{"model":"ok","model":"evil"}`,
		"case":                 `{"model":"ok","Model":"evil"}`,
		"only case":            `{"MODEL":"evil"}`,
		"escaped duplicate":    `{"mode\u006c":"ok","model":"evil"}`,
		"long s":               `{"model":"ok","ſtream":false}`,
		"kelvin sign":          `{"model":"ok","Keep_alive":0}`,
		"escaped long s":       `{"model":"ok","\u017ftream":false}`,
		"nul in a name":        "{\"model\":\"ok\",\"model\\u0000\":\"evil\"}",
		"second object":        `{"model":"ok"} {"model":"evil"}`,
		"garbage behind":       `{"model":"ok"}x`,
		"byte order mark":      "\ufeff" + `{"model":"ok"}`,
		"comment":              `{"model":"ok"/* */}`,
		"NaN":                  `{"model":"ok","x":NaN}`,
		"array":                `[]`,
		"string":               `"model"`,
		"number":               `1`,
		"null":                 `null`,
		"empty":                ``,
		"white space":          " \n",
		"no model":             `{}`,
		"null model":           `{"model":null}`,
		"number model":         `{"model":1}`,
		"empty model":          `{"model":""}`,
		"object model":         `{"model":{}}`,
		"newline in model":     `{"model":"a\nb"}`,
		"dots":                 `{"model":"../../etc/passwd"}`,
		"backslash":            `{"model":"a\\b"}`,
		"nul model":            `{"model":"a\u0000"}`,
		"long model":           `{"model":"` + strings.Repeat("a", 400) + `"}`,
		"lone surrogate model": `{"model":"a\ud800"}`,
		"invalid utf-8 model":  "{\"model\":\"a\xff\"}",
		"invalid utf-8 name":   "{\"model\":\"a\",\"mod\xffel\":1}",
		"stream is text":       `{"model":"ok","stream":"true"}`,
		"stream is a number":   `{"model":"ok","stream":1}`,
		"two models":           `{"model":"a","name":"b"}`,
		"name alone":           `{"model":"","name":"tiny"}`,
		"deep":                 `{"model":"ok","x":` + deep + `}`,
		"unfinished":           `{"model":"ok"`,
		"options is a list":    `{"model":"ok","temperature":1,"options":[]}`,
		"nested duplicate":     `{"model":"ok","options":{"a":1,"a":2}}`,
		"too many fields":      `{"model":"ok"` + manyFields(1001) + `}`,
	} {
		for _, kind := range []Kind{Chat, Generate, OpenAIChat} {
			if kind == OpenAIChat && (name == "two models" || name == "options is a list" || name == "kelvin sign") {
				continue // those fields mean nothing there
			}
			_, err := kind.Read([]byte(body), &Terms{})
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeBadRequest {
				t.Errorf("%s: got %v, want a refusal", name, err)
			} else if strings.Contains(e.Message, "evil") || strings.Contains(e.Message, "passwd") {
				t.Errorf("%s: the refusal echoes the body: %s", name, e.Message)
			}
		}
	}
	for _, body := range []string{
		`{"model":"a","stream":true,"stream_options":1}`, `{"model":"a","stream":true,"stream_options":{"include_usage":"yes"}}`,
		`{"model":"a","stream":true,"stream_options":{"Include_usage":true}}`,
	} {
		if _, err := OpenAIChat.Read([]byte(body), &Terms{}); err == nil {
			t.Errorf("accepted: %s", body)
		}
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(`,"f` + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i/26) + `":1`)
	}
	return b.String()
}

func TestAcceptedBodiesAndTheirEdits(t *testing.T) {
	for _, c := range []struct {
		kind      Kind
		in, out   string // out "" is in itself
		model     string
		stream    bool
		stripping bool
	}{
		{kind: Chat, in: `{"model":"tiny","messages":[]}`, model: "tiny:latest", stream: true},
		{kind: Chat, in: "\n {\"model\":\"tiny\"} \n", out: `{"model":"tiny"}`, model: "tiny:latest", stream: true},
		{kind: Chat, in: `{"model":"tiny","messages":[{"role":"user","content":"\ud83d"}],"stream":null}`, model: "tiny:latest", stream: true},
		{kind: Chat, in: `{"model":" tiny ","stream":false}`, out: `{"model":"tiny","stream":false}`, model: "tiny:latest"},
		{kind: Chat, in: `{"model":"registry.ollama.ai/library/Tiny:8B"}`, out: `{"model":"Tiny:8B"}`, model: "tiny:8b", stream: true},
		{kind: Chat, in: `{"model":"hf.co/Org/Model:Q4_K"}`, model: "hf.co/org/model:q4_k", stream: true},
		{kind: Chat, in: `{"model":"tiny:local"}`, out: `{"model":"tiny"}`, model: "tiny:latest", stream: true},
		{kind: Chat, in: `{"model":"tiny","x":1,"X":2,"tools":[{"Model":"a","model":"b"}]}`, model: "tiny:latest", stream: true},
		{kind: Generate, in: `{"model":"tiny","temperature":0.7,"stream":false}`, out: `{"model":"tiny","stream":false,"options":{"temperature":0.7}}`, model: "tiny:latest"},
		{kind: Generate, in: `{"temperature":0.7,"model":"tiny","options":{"seed":1},"max_tokens":5}`, out: `{"model":"tiny","options":{"temperature":0.7,"num_predict":5,"seed":1}}`, model: "tiny:latest", stream: true},
		{kind: Generate, in: `{"model":"tiny","options":{"temperature":0},"temperature":1}`, out: `{"model":"tiny","options":{"temperature":0}}`, model: "tiny:latest", stream: true},
		{kind: Generate, in: `{"model":"tiny","options":{},"temperature":1}`, out: `{"model":"tiny","options":{"temperature":1}}`, model: "tiny:latest", stream: true},
		{kind: Generate, in: `{"model":"tiny","options":null,"temperature":1}`, out: `{"model":"tiny","options":{"temperature":1}}`, model: "tiny:latest", stream: true},
		{kind: Generate, in: `{"model":"tiny","temperature":null}`, out: `{"model":"tiny"}`, model: "tiny:latest", stream: true},
		{kind: OpenAIChat, in: `{"model":"tiny"}`, model: "tiny:latest"},
		{kind: OpenAIChat, in: `{"model":"tiny","max_completion_tokens":9}`, out: `{"model":"tiny","max_tokens":9}`, model: "tiny:latest"},
		{kind: OpenAIChat, in: `{"model":"tiny","max_completion_tokens":9,"max_tokens":5}`, model: "tiny:latest"},
		{kind: OpenAIChat, in: `{"model":"tiny","max_tokens":null,"max_completion_tokens":9}`, out: `{"model":"tiny","max_tokens":9}`, model: "tiny:latest"},
		{kind: OpenAIChat, in: `{"model":"tiny","stream":true}`, out: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}`, model: "tiny:latest", stream: true, stripping: true},
		{kind: OpenAIChat, in: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}`, model: "tiny:latest", stream: true},
		{kind: OpenAIChat, in: `{"model":"tiny","stream":true,"stream_options":{"include_usage":false}}`, out: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}`, model: "tiny:latest", stream: true, stripping: true},
		{kind: OpenAIChat, in: `{"model":"tiny","stream":true,"stream_options":{"other":1}}`, out: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true,"other":1}}`, model: "tiny:latest", stream: true, stripping: true},
		{kind: OpenAIChat, in: `{"model":"tiny","stream":true,"stream_options":null}`, out: `{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}`, model: "tiny:latest", stream: true, stripping: true},
		{kind: Copy, in: `{"source":"tiny","destination":"b:c"}`, model: "tiny:latest"},
		{kind: Transfer, in: `{"model":"","name":"x:y"}`, model: "x:y", stream: true},
	} {
		req, err := c.kind.Read([]byte(c.in), &Terms{})
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if string(req.Body) != want {
			t.Errorf("%s\n got %s\nwant %s", c.in, req.Body, want)
		}
		if req.Model().String() != c.model || req.Stream != c.stream || req.StripUsage != c.stripping {
			t.Errorf("%s: model %s, stream %v, strip %v", c.in, req.Model(), req.Stream, req.StripUsage)
		}
	}
}

func TestPromptEstimateCountsTextAndNoImages(t *testing.T) {
	image := strings.Repeat("A", 100_000)
	req, err := Chat.Read([]byte(`{"model":"tiny","messages":[{"role":"user","content":"`+strings.Repeat("word ", 80)+`","images":["`+image+`"]}]}`), &Terms{})
	if err != nil {
		t.Fatal(err)
	}
	if req.PromptTokens < 90 || req.PromptTokens > 120 {
		t.Errorf("estimate %d for 400 characters", req.PromptTokens)
	}
}

func BenchmarkRead(b *testing.B) {
	small := []byte(`{"model":"tiny","messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"` + strings.Repeat("a sentence of some words ", 30) + `"}],"stream":true}`)
	image := []byte(`{"model":"tiny","messages":[{"role":"user","content":"look","images":["` + strings.Repeat("QUJD", 2<<20) + `"]}]}`)
	for name, body := range map[string][]byte{"small": small, "image 8 MiB": image} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Chat.Read(body, &Terms{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
