package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const ask = `"model":"tiny","messages":[{"role":"user","content":"the sea"}]`

// Every native call gets the answer that Ollama gives, and the books have the token counts of the answer.
func TestNativeCallsAreOnTheBooksExactly(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, "").Secret
	var prompt, completion, calls int64
	count := func(record map[string]any) {
		t.Helper()
		calls++
		if record["done"] == false {
			t.Errorf("the last record is not done: %v", record)
		}
		p, _ := record["prompt_eval_count"].(float64)
		c, _ := record["eval_count"].(float64)
		prompt, completion = prompt+int64(p), completion+int64(c)
	}
	const few = `,"options":{"num_predict":8,"seed":1}`
	chat := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+few+`,"stream":false}`).want(t, http.StatusOK)
	count(chat.object(t))
	if got := chat.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	stream := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+few+`}`).want(t, http.StatusOK)
	if got := stream.Header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("content type of a stream %q", got)
	}
	records := lines(t, stream.Body)
	count(last(records))
	if len(records) != 9 {
		t.Errorf("%d records, want 8 tokens and the end", len(records))
	}
	count(call(t, "POST", s.URL+"/api/generate", key, `{"model":"tiny","prompt":"the sea","stream":false`+few+`}`).want(t, http.StatusOK).object(t))
	count(last(lines(t, call(t, "POST", s.URL+"/api/generate", key, `{"model":"tiny","prompt":"the sea"`+few+`}`).want(t, http.StatusOK).Body)))
	count(call(t, "POST", s.URL+"/api/embed", key, `{"model":"tiny","input":["the sea","a dog"]}`).want(t, http.StatusOK).object(t))
	if prompt == 0 || completion != 4*8 {
		t.Fatalf("Ollama counted %d and %d tokens", prompt, completion)
	}
	// A field at the top level moves to the place where Ollama reads it.
	top := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`,"stream":false,"max_tokens":3,"temperature":0}`).want(t, http.StatusOK).object(t)
	count(top)
	if top["eval_count"] != 3.0 {
		t.Errorf("max_tokens 3 gave %v tokens", top["eval_count"])
	}

	st := s.stats(t, key, calls)
	if st.Total != calls || st.Prompt != prompt || st.Completion != completion || st.Estimated != 0 {
		t.Errorf("got books %+v; the answers have %d calls, %d and %d tokens", st, calls, prompt, completion)
	}
	if st.ByEndpoint["/api/chat"] != 3 || st.ByEndpoint["/api/generate"] != 2 || st.ByEndpoint["/api/embed"] != 1 || st.ByModel["tiny:latest"] != calls {
		t.Errorf("books by endpoint and model: %+v", st)
	}
	if st.Average == nil || *st.Average <= 0 || st.Last24h != calls {
		t.Errorf("average and last 24 hours: %+v", st)
	}
	// Requests for lists and statistics do not count.
	call(t, "GET", s.URL+"/api/tags", key, "").want(t, http.StatusOK)
	call(t, "GET", s.URL+"/v1/models", key, "").want(t, http.StatusOK)
	call(t, "POST", s.URL+"/api/show", key, `{"model":"tiny"}`).want(t, http.StatusOK)
	if again := s.stats(t, key, calls); again.Total != calls {
		t.Errorf("metadata was counted: %d", again.Total)
	}
}

// OpenAI streams contain usage only if the client asks for it. The books always have it.
func TestOpenAICallsAreOnTheBooksExactly(t *testing.T) {
	s := serve(t)
	var usage map[string]any
	for _, c := range []struct{ path, ask string }{
		{"/v1/chat/completions", ask + `,"max_tokens":8,"seed":1`},
		{"/v1/completions", `"model":"tiny","prompt":"the sea","max_tokens":8,"seed":1`},
	} {
		t.Run(c.path, func(t *testing.T) {
			key := s.makeKey(t, "").Secret
			whole := call(t, "POST", s.URL+c.path, key, `{`+c.ask+`}`).want(t, http.StatusOK).object(t)
			usage, _ = whole["usage"].(map[string]any)
			if usage["completion_tokens"] != 8.0 || usage["prompt_tokens"] == 0.0 {
				t.Fatalf("usage %v", usage)
			}
			plain := call(t, "POST", s.URL+c.path, key, `{`+c.ask+`,"stream":true}`).want(t, http.StatusOK)
			if !strings.HasSuffix(plain.Body, "data: [DONE]\n\n") || strings.Contains(plain.Body, `"usage"`) || strings.Contains(plain.Body, `"choices":[]`) {
				t.Errorf("a stream without usage: %s", plain.Body)
			}
			off := call(t, "POST", s.URL+c.path, key, `{`+c.ask+`,"stream":true,"stream_options":{"include_usage":false}}`).want(t, http.StatusOK)
			if strings.Contains(off.Body, `"usage"`) {
				t.Errorf("include_usage false: %s", off.Body)
			}
			asked := call(t, "POST", s.URL+c.path, key, `{`+c.ask+`,"stream":true,"stream_options":{"include_usage":true}}`).want(t, http.StatusOK)
			if got := fmt.Sprint(last(lines(t, asked.Body))["usage"]); got != fmt.Sprint(usage) {
				t.Errorf("usage of the stream %v, of the whole answer %v", got, usage)
			}
			st := s.stats(t, key, 4)
			if st.Total != 4 || st.Completion != 4*8 || float64(st.Prompt) != 4*usage["prompt_tokens"].(float64) || st.Estimated != 0 || st.ByEndpoint[c.path] != 4 {
				t.Errorf("books %+v, one answer %v", st, usage)
			}
		})
	}
	key := s.makeKey(t, "").Secret
	embedded := call(t, "POST", s.URL+"/v1/embeddings", key, `{"model":"tiny","input":["the sea"]}`).want(t, http.StatusOK).object(t)
	if st := s.stats(t, key, 1); float64(st.Prompt) != embedded["usage"].(map[string]any)["prompt_tokens"] {
		t.Errorf("books %+v, answer %v", st, embedded["usage"])
	}
	var list struct{ Data []struct{ ID string } }
	call(t, "GET", s.URL+"/v1/models", key, "").want(t, http.StatusOK).decode(t, &list)
	if len(list.Data) != 2 {
		t.Errorf("models %v", list)
	}
}

// A failure has the form that the clients of its path read.
func TestFailuresSpeakTheCallersDialect(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, `,"models":["tiny"]`).Secret
	for _, c := range []struct {
		method, path, key, body string
		status                  int
	}{
		{"POST", "/api/chat", "", `{` + ask + `}`, 401},
		{"POST", "/api/chat", "nonsense", `{` + ask + `}`, 401},
		{"POST", "/api/chat", key, `{"model":"nope","messages":[]}`, 404},
		{"POST", "/api/chat", key, `{"model":"llama2","messages":[]}`, 404},
		{"POST", "/api/chat", key, `{"model":"tiny","Model":"llama2","messages":[]}`, 400},
		{"POST", "/api/pull", key, `{"model":"tiny"}`, 403},
		{"GET", "/api/keys", key, ``, 403},
		{"GET", "/api/chat", key, ``, 405},
		{"GET", "/api/nothing", key, ``, 404},
		{"POST", "/v1/chat/completions", "", `{` + ask + `}`, 401},
		{"POST", "/v1/chat/completions", key, `{"model":"nope","messages":[{"role":"user","content":"x"}]}`, 404},
		{"POST", "/v1/chat/completions", key, `{"model": tiny`, 400},
	} {
		t.Run(fmt.Sprintf("%s %s %d", c.method, c.path, c.status), func(t *testing.T) {
			a := call(t, c.method, s.URL+c.path, c.key, c.body).want(t, c.status)
			if a.Header.Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
			failure := a.object(t)["error"]
			if strings.HasPrefix(c.path, "/v1/") {
				o, _ := failure.(map[string]any)
				if m, ok := o["message"].(string); !ok || m == "" || o["type"] == nil {
					t.Errorf("not OpenAI's shape: %s", a.Body)
				}
				return
			}
			if m, ok := failure.(string); !ok || m == "" {
				t.Errorf("not Ollama's shape: %s", a.Body)
			}
		})
	}
}
