package dialect

import (
	"errors"
	"fmt"
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
				continue // the kind does not have those fields
			}
			_, err := kind.Read(BodyOf([]byte(body)), &Terms{})
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeBadRequest {
				t.Errorf("%s: got %v, want a refusal", name, err)
			} else if strings.Contains(e.Message, "evil") || strings.Contains(e.Message, "passwd") {
				t.Errorf("%s: the error repeats the body: %s, want no %q, no %q", name, e.Message, "evil", "passwd")
			}
		}
	}
	for _, body := range []string{
		`{"model":"a","stream":true,"stream_options":1}`, `{"model":"a","stream":true,"stream_options":{"include_usage":"yes"}}`,
		`{"model":"a","stream":true,"stream_options":{"Include_usage":true}}`,
	} {
		if _, err := OpenAIChat.Read(BodyOf([]byte(body)), &Terms{}); err == nil {
			t.Errorf("got no error for %s, want one", body)
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
		req, err := c.kind.Read(BodyOf([]byte(c.in)), &Terms{})
		if err != nil {
			t.Errorf("%s: got error %v, want none", c.in, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if req.Body.String() != want {
			t.Errorf("%s\n got %s\nwant %s", c.in, req.Body, want)
		}
		if req.Model().String() != c.model || req.Stream != c.stream || req.StripUsage != c.stripping {
			t.Errorf("%s: got model %s, stream %v, strip %v, want %v, %v, %v", c.in, req.Model(), req.Stream, req.StripUsage, c.model, c.stream, c.stripping)
		}
	}
}

// Everything that reaches the model is in the estimate, in any spelling, because Ollama ignores the case of its field names.
func TestPromptEstimate(t *testing.T) {
	words := strings.Repeat("word ", 400) // 500 tokens
	picture := strings.Repeat("A", 100_000)
	chat := func(message string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":"x"},` + message + `]}`
	}
	for name, c := range map[string]struct {
		kind        Kind
		body        string
		least, most int64
	}{
		"content":             {Chat, chat(`{"role":"user","content":"` + words + `"}`), 505, 512},
		"folded":              {Chat, chat(`{"role":"user","Content":"` + words + `"}`), 505, 515},
		"folded by Unicode":   {Chat, chat(`{"role":"user","thin` + "\u212A" + `ing":"` + words + `"}`), 505, 515},
		"escaped":             {Chat, chat(`{"role":"user","c\u006fntent":"` + words + `"}`), 505, 515},
		"thinking":            {Chat, chat(`{"role":"assistant","thinking":"` + words + `"}`), 505, 512},
		"a role":              {Chat, chat(`{"role":"` + words + `","content":"x"}`), 500, 512},
		"arguments as object": {Chat, chat(`{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"` + words + `":"` + words + `"}}}]}`), 1008, 1020},
		"numbers":             {Chat, chat(`{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"x":[` + strings.Repeat("1,", 499) + `1]}}}]}`), 620, 645}, // with the commas
		"a tool result":       {Chat, chat(`{"role":"tool","tool_name":"f","content":"` + words + `"}`), 505, 512},
		"tools":               {Chat, `{"model":"tiny","messages":[],"tools":[{"type":"function","function":{"name":"f","description":"` + words + `"}}]}`, 500, 530},
		"an image":            {Chat, chat(`{"role":"user","content":"x","images":["` + picture + `"]}`), 1030, 1036},
		"folded images":       {Chat, chat(`{"role":"user","content":"x","Images":["` + picture + `"]}`), 1024, 26_000},
		"two images":          {Generate, `{"model":"tiny","prompt":"x","images":["` + picture + `","` + picture + `"]}`, 2048, 2060},
		"a suffix":            {Generate, `{"model":"tiny","prompt":"x","suffix":"` + words + `"}`, 500, 510},
		"a template":          {Generate, `{"model":"tiny","prompt":"x","template":"` + words + `"}`, 500, 510},
		"a context":           {Generate, `{"model":"tiny","prompt":"x","context":[` + strings.Repeat("1,", 499) + `1]}`, 500, 510},
		"a system prompt":     {Generate, `{"model":"tiny","prompt":"x","system":"` + words + `"}`, 500, 510},
		"OpenAI's parts":      {OpenAIChat, chat(`{"role":"user","content":[{"type":"text","text":"` + words + `"},{"type":"image_url","image_url":{"url":"data:image/png;base64,` + picture + `"}}]}`), 1532, 1545},
		"OpenAI's tools":      {OpenAIChat, `{"model":"tiny","messages":[],"tools":[{"type":"function","function":{"name":"f","description":"` + words + `"}}]}`, 500, 530},
		"Anthropic's blocks": {AnthropicMessages, chat(`{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"` + words + `"},` +
			`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + picture + `"}}]}`), 1532, 1545},
		"Anthropic's tool use": {AnthropicMessages, chat(`{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{"a":"` + words + `"}}]}`), 510, 520},
		"Responses' input": {OpenAIResponses, `{"model":"tiny","instructions":"` + words + `","input":[{"type":"function_call","call_id":"c","name":"f","arguments":"` + words + `"},` +
			`{"type":"function_call_output","call_id":"c","output":"` + words + `"}]}`, 1508, 1515},
		"Responses' thinking": {OpenAIResponses, `{"model":"tiny","input":[{"type":"reasoning","id":"r","summary":[],"encrypted_content":"` + words + `"}]}`, 500, 510},
		"OpenAI's sound":      {OpenAIChat, chat(`{"role":"user","content":[{"type":"input_audio","input_audio":{"format":"wav","data":"` + picture + `"}}]}`), 1030, 1040},
		"ids":                 {OpenAIChat, chat(`{"role":"tool","tool_call_id":"` + words + `","content":"x"}`), 500, 512},
		"ids in lists":        {Chat, chat(`{"role":"tool","id":["` + words + `","` + words + `"],"content":"x"}`), 1000, 1012},
		"digits":              {Generate, `{"model":"tiny","prompt":"` + strings.Repeat("7", 500) + `"}`, 500, 500},
		"digits of tools":     {Chat, `{"model":"tiny","messages":[],"tools":["` + strings.Repeat("7", 500) + `"]}`, 500, 501},
		"Chinese":             {Generate, `{"model":"tiny","prompt":"` + strings.Repeat("汉", 500) + `"}`, 500, 500},
		"Cyrillic":            {Generate, `{"model":"tiny","prompt":"` + strings.Repeat("ы", 500) + `"}`, 500, 500},
		"escaped Chinese":     {Generate, `{"model":"tiny","prompt":"` + strings.Repeat(`\u6c49`, 500) + `"}`, 500, 500},
		"parts":               {OpenAIChat, chat(`{"role":"user","content":[` + strings.Repeat(`{"type":"text","text":"a"},`, 499) + `{"type":"text","text":"a"}]}`), 2000, 2150},
		"nulls":               {Chat, chat(`{"role":"user","content":[` + strings.Repeat(`null,`, 499) + `null]}`), 500, 510},
		"Anthropic's count": {AnthropicCount, chat(`{"role":"user","content":[{"type":"text","text":"` + words + `"},{"type":"tool_use","id":"` + words + `","name":"f","input":{"x":1}},` +
			`{"type":"image","source":{"type":"base64","data":"` + picture + `"}}]}`), 500, 505},
	} {
		req, err := c.kind.Read(BodyOf([]byte(c.body)), &Terms{})
		if err != nil {
			t.Errorf("%s: got error %v, want none", name, err)
			continue
		}
		if req.PromptTokens < c.least || req.PromptTokens > c.most {
			t.Errorf("%s: got an estimate of %d tokens, want %d to %d", name, req.PromptTokens, c.least, c.most)
		}
	}
}

// Names within a tool's arguments are data: the cost of a string there does not depend on its name.
func TestArgumentsCostWhatTheySay(t *testing.T) {
	long := strings.Repeat("all work and no play ", 5000) // 105,000 bytes
	short := strings.TrimSuffix(strings.Repeat(`"sixty bytes of text that a model has to read, again and yet",`, 2000), ",")
	nulls := strings.TrimSuffix(strings.Repeat("null,", 50_000), ",")
	for name, arguments := range map[string]string{
		"a text called note":    `{"note":"` + long + `"}`,
		"a text called data":    `{"data":"` + long + `"}`,
		"a text called url":     `{"url":"` + long + `"}`,
		"texts called id":       `{"id":[` + short + `]}`,
		"texts called type":     `{"type":[` + short + `]}`,
		"a message":             `{"content":[{"type":"image","source":{"data":"` + long + `"}}]}`,
		"many nulls":            `{"note":[` + nulls + `]}`,
		"many booleans":         `{"note":[` + strings.ReplaceAll(nulls, "null", "true") + `]}`,
		"many objects":          `{"id":[` + strings.ReplaceAll(nulls, "null", "{}") + `]}`,
		"lists in lists":        strings.Repeat("[", 1000) + `"` + long + `"` + strings.Repeat("]", 1000),
		"a string with objects": `"{\"data\":\"` + long + `\"}"`,
	} {
		for place, c := range map[string]struct {
			kind Kind
			body string
		}{
			"arguments":           {Chat, `{"model":"a","messages":[{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":%s}}]}]}`},
			"OpenAI's arguments":  {OpenAIChat, `{"model":"a","messages":[{"role":"assistant","tool_calls":[{"type":"function","id":"x","function":{"name":"f","arguments":%s}}]}]}`},
			"Responses'":          {OpenAIResponses, `{"model":"a","input":[{"type":"function_call","call_id":"x","name":"f","arguments":%s}]}`},
			"Anthropic's input":   {AnthropicMessages, `{"model":"a","max_tokens":9,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":%s}]}]}`},
			"an unknown field":    {Chat, `{"model":"a","messages":[{"role":"user","content":"","Images":%s}]}`},
			"parameters":          {Chat, `{"model":"a","messages":[],"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]}`},
			"a prompt of another": {OpenAIResponses, `{"model":"a","input":"x","instructions":{"x":%s}}`},
		} {
			got, least := estimated(t, c.kind, strings.Replace(c.body, "%s", arguments, 1)), int64(len(arguments))/5
			if got < least || got > 2*least {
				t.Errorf("%s in %s: %d bytes: got an estimate of %d tokens, want %d to %d", name, place, len(arguments), got, least, 2*least)
			}
		}
	}
}

// An agent whose tool takes addresses does not pay for images that it does not send.
func TestAnAddressInArgumentsIsNoImage(t *testing.T) {
	var turns []string
	for i := range 50 {
		turns = append(turns, fmt.Sprintf(`{"role":"assistant","content":[{"type":"tool_use","id":"t%d","name":"WebFetch","input":{"url":"https://example.com/%d"}}]},`+
			`{"role":"user","content":[{"type":"tool_result","tool_use_id":"t%d","content":"ok"}]}`, i, i, i))
	}
	body := `{"model":"a","max_tokens":9,"messages":[` + strings.Join(turns, ",") + `]}`
	if got := estimated(t, AnthropicMessages, body); got > int64(len(body))/4 {
		t.Errorf("%d bytes with 50 short addresses: got an estimate of %d tokens, want less", len(body), got)
	}
}

// Each message costs what a template prints around it: about five tokens.
func TestEmptyMessagesCostTheirTemplate(t *testing.T) {
	const n = 2000
	body := `{"model":"a","messages":[` + strings.TrimSuffix(strings.Repeat(`{"role":"user","content":"a"},`, n), ",") + `]}`
	if got := estimated(t, Chat, body); got < 4*n || got > 6*n {
		t.Errorf("%d messages: got an estimate of %d tokens, want %d to %d", n, got, 4*n, 6*n)
	}
}

func estimated(t *testing.T, k Kind, body string) int64 {
	t.Helper()
	req, err := k.Read(BodyOf([]byte(body)), &Terms{})
	if err != nil {
		t.Fatalf("got error %v for %.200s", err, body)
	}
	return req.PromptTokens
}

func BenchmarkRead(b *testing.B) {
	small := []byte(`{"model":"tiny","messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"` + strings.Repeat("a sentence of some words ", 30) + `"}],"stream":true}`)
	image := []byte(`{"model":"tiny","messages":[{"role":"user","content":"look","images":["` + strings.Repeat("QUJD", 2<<20) + `"]}]}`)
	for name, body := range map[string][]byte{"small": small, "image 8 MiB": image} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Chat.Read(BodyOf(body), &Terms{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestPlain(t *testing.T) {
	filler := strings.Repeat("a", 1010)
	for body, want := range map[string]bool{
		`{"model":"tiny","prompt":"x"}`:                                        true,
		`{"model":"tiny","prompt":"` + filler + `"}`:                           true,
		`{"model":"tiny","prompt":"x","format":"json"}`:                        false,
		`{"model":"tiny","prompt":"` + filler + `","Format":"json"}`:           false,
		`{"model":"tiny","prompt":"x","f` + "\\u006f" + `rmat":"json"}`:        false,
		`{"model":"tiny","messages":[{"role":"user","images":["QUJD"]}]}`:      false,
		`{"model":"tiny","prompt":"` + strings.Repeat("a", maxPlain) + `"}`:    false,
		`{"model":"tiny","messages":[],"response_format":{"type":"json"}}`:     false,
		`{"model":"tiny","prompt":"` + filler[:990] + `","tools":[{"a":"b"}]}`: false,
	} {
		if got := plain([]byte(body)); got != want {
			t.Errorf("plain(%.60s…) of %d bytes = %v, want %v", body, len(body), got, want)
		}
	}
}

// Ollama refuses load-time options of another type without a load.
func TestLoadOptionsOfAnotherType(t *testing.T) {
	for _, option := range []string{`"num_ctx":"x"`, `"num_ctx":[]`, `"num_ctx":{}`, `"num_ctx":true`, `"use_mmap":1`, `"num_gpu":null`} {
		req, err := Chat.Read(BodyOf([]byte(`{"model":"tiny","messages":[],"options":{`+option+`}}`)), &Terms{})
		if err == nil && req.LoadOptions != nil {
			t.Errorf("%s: got the load-time options %s, want none", option, req.LoadOptions)
		}
	}
}

// Different spellings of the same load-time options give the same bytes: requests with them need no change of model.
func TestLoadOptionsHaveOneSpelling(t *testing.T) {
	for _, spelling := range []string{"4096", "4096.0", "4.096e3", "40960e-1"} {
		req, err := Chat.Read(BodyOf([]byte(`{"model":"tiny","messages":[],"options":{"num_ctx":`+spelling+`}}`)), &Terms{})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(req.LoadOptions), `{"num_ctx":4096}`; got != want {
			t.Errorf("num_ctx %s: got the options %s, want %s", spelling, got, want)
		}
	}
}
