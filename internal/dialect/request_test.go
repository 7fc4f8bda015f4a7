package dialect

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
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
		{kind: Generate, in: `{"model":"","name":"tiny"}`, model: "tiny:latest", stream: true},
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

// A schema of 64 KiB passes, as it is; one byte more is refused, in each dialect's own field.
func TestSchemasAreBounded(t *testing.T) {
	for kind, field := range map[Kind]string{Chat: "format", Generate: "format", OpenAIChat: "response_format", OpenAIResponses: "text", AnthropicMessages: "output_config"} {
		for extra, refused := range map[int]bool{0: false, 1: true} {
			schema := `{"description":"` + strings.Repeat("x", maxSchema-len(`{"description":""}`)+extra) + `"}`
			req, err := kind.Read([]byte(`{"model":"tiny","`+field+`":`+schema+`}`), &Terms{})
			switch {
			case refused && (err == nil || api.AsError(err).Code != api.CodeBadRequest || !strings.Contains(err.Error(), field)):
				t.Errorf("%s of %d bytes: %v", field, len(schema), err)
			case !refused && (err != nil || !bytes.Contains(req.Body, []byte(schema))):
				t.Errorf("%s of %d bytes: %v", field, len(schema), err)
			}
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

// ollamaBody is how Ollama itself binds a body: encoding/json, which folds case and takes the last of two.
type ollamaBody struct {
	Model         string         `json:"model"`
	Name          string         `json:"name"`
	Stream        *bool          `json:"stream"`
	KeepAlive     any            `json:"keep_alive"`
	Options       map[string]any `json:"options"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// FuzzWhatIsAuthorisedIsWhatIsForwarded: whatever body is accepted, Ollama's own decoder must read from the forwarded bytes
// the model and the stream setting that were authorised.
func FuzzWhatIsAuthorisedIsWhatIsForwarded(f *testing.F) {
	for _, seed := range []string{
		`{"model":"tiny","messages":[]}`, `{"model":"ok","Model":"evil"}`, `{"mode\u006c":"a"}`, `{"model":"a","ſtream":false}`,
		`{"model":" tiny:local ","temperature":1,"options":{"a":[1,2]}}`, `{"name":"x","model":""}`, `{"model":"a","stream":true,"stream_options":{}}`,
		`{"model":"a","max_completion_tokens":1,"stream":true}`, `{"model":"a","input":"x","stream":true,"tools":[{"type":"web_search"}]}`, `{"model":"claude-x","max_tokens":1,"Stream":true}`, `{"model":"a"}{"model":"b"}`, "{\"model\":\"a\xff\"}", `{"options":{},"max_tokens":3,"model":"a"}`,
	} {
		f.Add([]byte(seed))
	}
	alias, err := api.ParseAlias("claude-*=tiny")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, kind := range []Kind{Chat, Generate, OpenAIChat, OpenAICompletions, OpenAIResponses, AnthropicMessages, Embed, Show, Transfer} {
			req, err := kind.Read(bytes.Clone(body), &Terms{Aliases: api.Aliases{alias}})
			if err != nil {
				continue
			}
			var got ollamaBody
			dec := json.NewDecoder(bytes.NewReader(req.Body))
			if err := dec.Decode(&got); err != nil {
				var wrongType *json.UnmarshalTypeError
				if errors.As(err, &wrongType) {
					continue // Ollama answers 400 to it
				}
				t.Fatalf("kind %d: forwarded what is no JSON: %v\n%q", kind, err, req.Body)
			}
			name := got.Model
			if name == "" {
				name = got.Name
			}
			if m, _, err := api.ParseModel(name); err != nil || m != req.Model() {
				t.Fatalf("kind %d: authorised %v, forwarded %q", kind, req.Model(), name)
			}
			if kind.mayStream() {
				stream := kind.Streams()
				if got.Stream != nil {
					stream = *got.Stream
				}
				if stream != req.Stream {
					t.Fatalf("kind %d: authorised stream %v, forwarded %v", kind, req.Stream, stream)
				}
				if kind.Family() == OpenAI && req.Stream && (got.StreamOptions == nil || !got.StreamOptions.IncludeUsage) {
					t.Fatalf("a stream without usage goes upstream: %q", req.Body)
				}
			}
		}
	})
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

// The test types of Ollama's own binding of tools: whatever case is used, it must not ask for a search that was not seen.
func FuzzWebSearchIsSeen(f *testing.F) {
	for _, seed := range []string{
		`[{"type":"web_search"}]`, `[{"type":"function"},{"type":"web_search_20250305"}]`, `[{"Type":"web_search"}]`, `[{"type":"web\u005fsearch"}]`,
		`[{"ty\u0070e":"web_search"}]`, `[null,1,"web_search",{"type":null},{"type":"x","tYpe":"web_search"}]`, `{"type":"web_search"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, tools []byte) {
		req, err := AnthropicMessages.Read([]byte(`{"model":"tiny","tools":`+string(tools)+`}`), &Terms{})
		if err != nil {
			return
		}
		var got struct{ Tools []struct{ Type string } }
		if json.Unmarshal(req.Body, &got) != nil {
			return // Ollama answers 400 to it
		}
		asked := slices.ContainsFunc(got.Tools, func(tool struct{ Type string }) bool { return strings.HasPrefix(tool.Type, "web_search") })
		if asked && !req.WebSearch {
			t.Fatalf("a search passes unseen: %q", req.Body)
		}
	})
}
