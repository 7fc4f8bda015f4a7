package server_test

import (
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// A simple reader skips the chunk of a chat that contains an error, and takes the end of the stream for a proper one. So the connection
// breaks for all programs except those that are known to show the error. No reader skips named events, so those streams end in order.
func TestUnknownReadersSeeTheBreak(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		const openAISDK = "OpenAI/JS 7.59.0"
		b := start(t, setup{http2: http2})
		key, _ := b.key(`{"name":"user","role":"user","rate_limit":null}`)
		for _, f := range flows() {
			b.ollama.Script("POST", f.path, ollamatest.Answer{Tokens: 5, NoTerminal: true})
			for agent, plain := range map[string]bool{
				"Go-http-client/1.1": true, "Go-http-client/2.0": true, "program/1.0 langchaingo/v0.1.14 Go/go1.26.0 (linux amd64)": true, "python-requests/2.32.3": true,
				"python-httpx/0.28.1": true, "Python-urllib/3.13": true, "curl/8.14.1": true, "axios/1.7.9": true, "okhttp/4.12.0": true, "Java-http-client/21.0.2": true,
				"Python/3.12 aiohttp/3.11.0": true, "undici": true, "reqwest/0.12": true, "GuzzleHttp/7": true, "Mozilla/5.0": true, "": true,
				"ai-sdk-openai-compatible/3.0.92 ai-sdk-provider-utils/5.0.81 node.js/v20": false, "ai/5.0.1 ai-sdk/openai-compatible/1.0.1": false, "node": false, "opencode/1.18.33": false, openAISDK: false,
			} {
				req := b.request("POST", f.path, key, strings.Replace(f.request, "%q", `"x"`, 1))
				req.Header.Set("User-Agent", agent)
				if agent != openAISDK {
					req.Header.Del("X-Stainless-Lang")
				}
				r := b.send(req)
				breaks := f.name == "native" || plain && (f.name == "chat" || f.name == "completions")
				if (r.err != nil) != breaks || !strings.Contains(r.body, endedEarly) || strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, `"finish_reason":"`) {
					t.Errorf("%s to %q: %v, want a break: %v\n%s", f.name, agent, r.err, breaks, r.body)
				}
			}
		}
	})
}

// Each dialect and client gets its own form of heartbeat, before an answer and within it.
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

// An error that Ollama itself sends within a stream ends the stream, even if the end of the answer has begun.
func TestErrorsOfOllamaWithinAStream(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	const (
		text  = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"sea\"}}\n\n"
		delta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\n"
		boom  = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"boom\"}}\n\n"
		word  = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"sea\",\"sequence_number\":1}\n\n"
		bang  = "event: error\ndata: {\"type\":\"error\",\"message\":\"boom\",\"error\":{\"message\":\"boom\"},\"sequence_number\":2}\n\n"
		dead  = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"id\":\"resp_1\",\"status\":\"failed\",\"error\":{\"message\":\"boom\"}}}\n\n"
	)
	for _, c := range []struct {
		name, path string
		sends      []string
		ends       []string // in this order, to the end of the answer
	}{
		{"messages", "/v1/messages", []string{text, boom}, []string{"sea", "event: error\n", `"boom"`}},
		{"messages, within the end", "/v1/messages", []string{text, delta, boom}, []string{"sea", "event: error\n", endedEarly}},
		{"responses", "/v1/responses", []string{word, bang}, []string{"sea", "event: error\n", `"boom"`, "event: response.failed\n", `"boom"`}},
		{"responses, with the event that ends it", "/v1/responses", []string{word, bang, dead}, []string{"sea", "event: error\n", "event: response.failed\n", `"boom"`}},
	} {
		b.ollama.Script("POST", c.path, ollamatest.Answer{Header: map[string][]string{"Content-Type": {"text/event-stream"}}, Chunks: c.sends})
		r := b.do("POST", c.path, key, streamed)
		rest := r.body
		for _, want := range c.ends {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("%s: %v %q, want %q in this order", c.name, r.err, r.body, c.ends)
			}
			rest = after
		}
		if r.err != nil || strings.Contains(r.body, "end_turn") || strings.Count(r.body, "event: response.failed") > 1 {
			t.Errorf("%s: %v %q, want one failure and an end in order", c.name, r.err, r.body)
		}
	}
}
