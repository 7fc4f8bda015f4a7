package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// webUICalls are the bodies that Open WebUI sends, by method and path. Open WebUI is a Python server with a browser interface. It is not
// installed here: these are the requests that its router builds.
var webUICalls = map[string]string{
	"GET /api/tags": "", "GET /api/ps": "", "GET /api/version": "", "GET /v1/models": "",
	"POST /api/show":            `{"name": "MODEL", "model": "MODEL"}`,
	"POST /api/chat":            `{"model": "MODEL", "messages": [{"role": "user", "content": "the sea"}], "options": {"num_predict": 8, "seed": 1}, "stream": true}`,
	"POST /api/chat, whole":     `{"model": "MODEL", "messages": [{"role": "user", "content": "the sea"}], "options": {"num_predict": 8, "seed": 1}, "stream": false}`,
	"POST /api/generate":        `{"model":"MODEL","prompt":"the sea","options":{"num_predict":8,"seed":1},"stream":true}`,
	"POST /api/embed":           `{"model":"MODEL","input":["the sea","a dog"]}`,
	"POST /api/embeddings":      `{"model":"MODEL","prompt":"the sea"}`,
	"POST /v1/chat/completions": `{"model": "MODEL", "messages": [{"role": "user", "content": "the sea"}], "max_tokens": 8, "seed": 1, "stream": true, "stream_options": {"include_usage": true}}`,
	"POST /v1/completions":      `{"model": "MODEL", "prompt": "the sea", "max_tokens": 8, "seed": 1}`,
	"unload":                    `{"model": "MODEL:latest", "keep_alive": 0, "prompt": ""}`,
	"POST /api/pull":            `{"model": "MODEL", "name": "MODEL", "insecure": true}`,
	"POST /api/push":            `{"model":"MODEL","insecure":true}`,
	"POST /api/create":          `{"model":"MODEL","from":"MODEL"}`,
	"POST /api/copy":            `{"source":"MODEL","destination":"copy"}`,
	"DELETE /api/delete":        `{"name": "MODEL", "model": "MODEL"}`,
}

// webUIAttempts are the calls that docs/clients.md shows: all except /api/version, which needs no key.
var webUIAttempts = []attempt{
	{name: "GET /api/tags", traits: lists},
	{name: "GET /api/ps"},
	{name: "GET /v1/models", traits: lists},
	{name: "POST /api/show", traits: modelled},
	{name: "POST /api/chat, whole", traits: asks},
	{name: "POST /api/chat", traits: asks | streamed, like: "POST /api/chat, whole"},
	{name: "POST /api/generate", traits: asks | streamed},
	{name: "POST /api/embed", traits: asks | uncounted},
	{name: "POST /api/embeddings", traits: asks | uncounted},
	{name: "POST /v1/completions", traits: asks},
	{name: "POST /v1/chat/completions", traits: asks | streamed, like: "POST /v1/completions"},
	{name: "unload", traits: asks | refused, says: map[string]string{forAdmins: mayNotUnload}},
	{name: "POST /api/pull", traits: modelled | refused},
	{name: "POST /api/push", traits: modelled | refused},
	{name: "POST /api/create", traits: modelled | refused},
	{name: "POST /api/copy", traits: modelled | refused},
	{name: "DELETE /api/delete", traits: modelled | refused},
}

// webUIRequest returns a request with every header that Open WebUI sends, including the user's name and address.
func webUIRequest(t *testing.T, o order) *http.Request {
	t.Helper()
	method, path, _ := strings.Cut(strings.TrimSuffix(o.Call, ", whole"), " ")
	if o.Call == "unload" {
		method, path = "POST", "/api/generate"
	}
	body, known := webUICalls[o.Call]
	if !known {
		t.Fatalf("Open WebUI does not call %s", o.Call)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, o.URL+path, strings.NewReader(strings.ReplaceAll(body, "MODEL", o.Model)))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "Python/3.11 aiohttp/3.11.11",
		"X-OpenWebUI-User-Name": "Ada%20L", "X-OpenWebUI-User-Id": "4711", "X-OpenWebUI-User-Email": "ada@example.org",
		"X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "chat-1",
	} {
		req.Header.Set(name, value)
	}
	if o.Key != "" {
		req.Header.Set("Authorization", "Bearer "+o.Key)
	}
	return req
}

// playWebUI sends the requests and reads the answers as Open WebUI does. Of a failure, Open WebUI shows res["error"]. It forwards the
// header of our answer to its browser.
func playWebUI(t *testing.T, orders []order) []got {
	var results []got
	for _, o := range orders {
		g := got{OK: true}
		from := time.Now()
		res, err := client.Do(webUIRequest(t, o))
		if err != nil {
			t.Fatal(err)
		}
		body, broke := io.ReadAll(res.Body)
		res.Body.Close()
		if h := res.Header; h.Get("Content-Encoding") != "" || h.Get("Keep-Alive") != "" || h.Get("Upgrade") != "" || h.Get("Trailer") != "" {
			t.Errorf("%s: the answer has a header that Open WebUI would forward: %v", o.Call, h)
		}
		g.Status = res.StatusCode
		switch {
		case res.StatusCode >= 400:
			g.OK, g.Type, g.Says = false, fmt.Sprint("HTTP ", res.StatusCode), webUIError(t, body)
		case strings.HasPrefix(res.Header.Get("Content-Type"), "application/json"):
			readWhole(t, body, &g)
		default:
			readStream(body, &g)
			if g.OK && broke != nil {
				g.OK, g.Says = false, broke.Error()
			}
		}
		g.Ms = int(time.Since(from).Milliseconds())
		results = append(results, g)
	}
	return results
}

// record has the fields that Open WebUI reads from an answer of either dialect.
type record struct {
	Error   json.RawMessage
	Message struct{ Content string }
	Choices []struct {
		Text  string
		Delta struct{ Content string }
	}
	Response        string
	PromptEvalCount int   `json:"prompt_eval_count"`
	EvalCount       int   `json:"eval_count"`
	Usage           usage `json:"usage"`

	Models     []struct{ Name string }
	Data       []struct{ ID string }
	Details    struct{ Family string }
	Embeddings [][]float64
	Embedding  []float64
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
}

func (r *record) into(g *got) {
	g.Text += r.Message.Content + r.Response
	for _, c := range r.Choices {
		g.Text += c.Delta.Content + c.Text
	}
	if n := r.PromptEvalCount + r.Usage.Prompt; n > 0 {
		g.Prompt, g.Completion = n, r.EvalCount+r.Usage.Completion
	}
	for _, m := range r.Models {
		g.Text += m.Name + ","
	}
	for _, m := range r.Data {
		g.Text += m.ID + ","
	}
	if n := len(r.Embeddings) + len(r.Embedding); n > 0 {
		g.Text += fmt.Sprint(n)
	}
	g.Text += r.Details.Family
}

func readWhole(t *testing.T, body []byte, g *got) {
	t.Helper()
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		t.Errorf("not JSON: %s", body)
	}
	r.into(g)
}

// readStream reads lines of NDJSON or events. An error in one of them is shown to the user.
func readStream(body []byte, g *got) {
	for line := range bytes.Lines(body) {
		line = bytes.TrimPrefix(bytes.TrimSpace(line), []byte("data: "))
		var r record
		if json.Unmarshal(line, &r) != nil {
			continue // an empty line, or [DONE]
		}
		r.into(g)
		if r.Error != nil {
			g.OK, g.Type, g.Says = false, "in the stream", errorText(r.Error)
		}
	}
}

func webUIError(t *testing.T, body []byte) string {
	t.Helper()
	var r record
	if err := json.Unmarshal(body, &r); err != nil || r.Error == nil {
		t.Errorf("no error in %s", body)
	}
	return errorText(r.Error)
}

// errorText returns a native error, or the message of an error in OpenAI's form.
func errorText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var object struct{ Message string }
	_ = json.Unmarshal(raw, &object) // any other value has no text, so the case fails
	return object.Message
}

// Open WebUI's requests without a key are answered quickly: it waits ten seconds for a list, and compares versions as numbers.
func TestOpenWebUIAsksWithoutAKey(t *testing.T) {
	s := serve(t)
	for _, key := range []string{"", "oas_0000000000_00000000000000000000000000000000000000", s.makeKey(t, "").Secret} {
		from := time.Now()
		res, err := client.Do(webUIRequest(t, order{Call: "GET /api/version", URL: s.URL, Key: key}))
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ Version string }
		err = json.NewDecoder(res.Body).Decode(&v)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/json" || time.Since(from) > time.Second {
			t.Errorf("version: %s, %v, %v", res.Status, res.Header, err)
		}
		for number := range strings.SplitSeq(regexp.MustCompile("^v|-.*").ReplaceAllString(v.Version, ""), ".") {
			if _, err := strconv.Atoi(number); err != nil {
				t.Errorf("Open WebUI cannot compare the version %q", v.Version)
			}
		}
	}
	// Some of its versions send these without a key too. They are refused with a message.
	for _, path := range []string{"/api/create", "/api/blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000"} {
		a := call(t, "POST", s.URL+path, "", `{"model":"x"}`).want(t, http.StatusUnauthorized)
		if text, _ := a.object(t)["error"].(string); !strings.Contains(text, "contains no API key") {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
}

// The identity of Open WebUI's user is not forwarded, because for a cloud model Ollama sends everything that it gets to the cloud.
func TestOpenWebUIUsersStayHere(t *testing.T) {
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil)
	for call := range webUICalls {
		res, err := client.Do(webUIRequest(t, order{Call: call, URL: s.URL, Key: s.Admin, Model: "tiny"}))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s with an admin's key: %s", call, res.Status)
		}
	}
	seen := fake.Requests()
	if len(seen) < len(webUICalls)-1 { // the version comes from the last probe
		t.Fatalf("%d requests reached Ollama", len(seen))
	}
	for _, r := range seen {
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Openwebui") || name == "Authorization" || name == "Cookie" {
				t.Errorf("%s %s carries %s to Ollama", r.Method, r.Path, name)
			}
		}
	}
}
