package server_test

import (
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/ollamatest"
	"ollama-api-service/internal/server"
)

// A simple reader passes over the chunk of a chat that says what went wrong, and takes the end for the end: a program that shows no name of
// its own sees the connection break. Events that are named are passed over by no reader, and end in order.
func TestPlainLibrariesSeeTheBreak(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		b := start(t, setup{http2: http2})
		key := b.user()
		for _, f := range flows() {
			b.ollama.Script("POST", f.path, ollamatest.Answer{Tokens: 5, NoTerminal: true})
			for agent, plain := range map[string]bool{
				"Go-http-client/1.1": true, "Go-http-client/2.0": true, "program/1.0 langchaingo/v0.1.14 Go/go1.26.0 (linux amd64)": true, "python-requests/2.32.3": true,
				"python-httpx/0.28.1": true, "Python-urllib/3.13": true, "curl/8.14.1": true,
				"ai-sdk/openai-compatible/3.0.92": false, "OpenAI/JS 7.59.0": false, "OpenAI/Python 2.8.0": false, "codex_exec/0.171.0": false, "node": false, "Mozilla/5.0": false, "": false,
			} {
				req := b.request("POST", f.path, key, strings.Replace(f.request, "%q", `"x"`, 1))
				req.Header.Set("User-Agent", agent)
				r := b.send(req)
				breaks := f.name == "native" || plain && (f.name == "chat" || f.name == "completions")
				if (r.err != nil) != breaks || !strings.Contains(r.body, endedEarly) || strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, `"finish_reason":"`) {
					t.Errorf("%s to %q: %v, want a break: %v\n%s", f.name, agent, r.err, breaks, r.body)
				}
			}
		}
	})
}

// Each dialect and client gets its form, before an answer and within it.
func TestHeartbeatForms(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) { o.Heartbeat = 5 * time.Millisecond }})
	key := b.user()
	const piece = `data: {"id":"","object":"`
	for path, forms := range map[string][2]string{
		"/v1/chat/completions": {piece + `chat.completion.chunk","created":`, ": waiting\n: waiting\n"},
		"/v1/completions":      {piece + `text_completion","created":`, ": waiting\n: waiting\n"},
		"/v1/responses":        {": waiting\n\n: waiting\n\n", ": waiting\n: waiting\n"},
		"/v1/messages":         {"event: ping\ndata: {\"type\":\"ping\"}\n\nevent: ping\n", "event: ping\ndata: {\"type\":\"ping\"}\n\nevent: ping\n"},
	} {
		for i, language := range []string{"js", "go"} {
			header := make(chan struct{})
			b.ollama.Script("POST", path, ollamatest.Answer{Tokens: 3, HeaderGate: header})
			req := b.request("POST", path, key, streamed)
			req.Header.Set("X-Stainless-Lang", language)
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, len(forms[i]))
			for got := 0; got < len(first); {
				n, err := resp.Body.Read(first[got:])
				if got += n; err != nil {
					t.Fatal(err)
				}
			}
			if string(first) != forms[i] {
				t.Errorf("%s in %s: %q, want %q", path, language, first, forms[i])
			}
			close(header)
			if _, err := readAll(resp); err != nil {
				t.Error(err)
			}
			resp.Body.Close()
		}
	}
}
