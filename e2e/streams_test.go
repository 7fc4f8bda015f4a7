package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// reader is a program that reads streams in several ways. Each way is a call.
type reader struct {
	name  string
	play  func(*testing.T, []order) []got
	calls []string
	// dumb are the calls that show their own message for a broken stream, with that message. None of them takes the stream for a complete
	// answer.
	dumb map[string]string
}

func streamReaders(t *testing.T) []reader {
	golang := func(modfile string) func(*testing.T, []order) []got { return playProgram(buildReader(t, modfile)) }
	goCalls := []string{
		"openai-go, chat", "openai-go, accumulator", "openai-go, completions", "openai-go, responses", "anthropic-sdk-go",
		"go-openai, chat", "langchaingo, openai", "langchaingo, anthropic",
	}
	// It skips an error chunk, so only the broken connection reports the failure.
	passesOver := map[string]string{"langchaingo, openai": "unexpected EOF"}
	npmProject(t, filepath.Join("clients", "streams"))
	return []reader{
		{"npm", playProgram("node", "streams/streams.mjs"), []string{
			"openai, chat", "openai, chat.stream", "openai, completions", "openai, responses", "openai, responses.stream",
			"openai 4, chat", "openai 4, chat.stream", "openai 4, completions", "openai 4, responses",
			"anthropic, messages", "anthropic, messages.stream", "anthropic 0.27, messages", "anthropic 0.27, messages.stream",
			"ai, openai-compatible", "ai, openai chat", "ai, openai responses", "ai, anthropic", "ai 4, openai-compatible",
			"blocks that start with data:", "lines that start with data:", "eventsource-parser",
		}, map[string]string{"anthropic 0.27, messages": "Connection error.", "anthropic 0.27, messages.stream": "Connection error."}},
		{"Go", golang("go.mod"), goCalls, passesOver},
		{"Go, newest", golang("newest.mod"), goCalls, passesOver},
	}
}

// buildReader builds the program in clients/streams, which is its own module, with the versions of a module file.
func buildReader(t *testing.T, modfile string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "reader")
	build := exec.CommandContext(t.Context(), "go", "build", "-modfile="+modfile, "-o", path, ".")
	build.Dir = filepath.Join("clients", "streams")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building clients/streams with %s: %v\n%s", modfile, err, out)
	}
	return path
}

const readerTokens = 8

// slowly is an Ollama that loads for a while and pauses within its answer. If the model is called "dies", it breaks the connection.
func slowly(r *ollamatest.Request) ollamatest.Answer {
	var body struct{ Model string }
	_ = json.Unmarshal(r.Body, &body) // Ollama also answers a body that it cannot parse
	loaded, gate := make(chan struct{}), make(chan struct{}, 64)
	const pause = 50 * time.Millisecond // ten heartbeats
	time.AfterFunc(pause, func() { close(loaded) })
	for range 6 {
		gate <- struct{}{}
	}
	time.AfterFunc(2*pause, func() { close(gate) })
	a := ollamatest.Answer{Tokens: readerTokens, HeaderGate: loaded, Gate: gate}
	if strings.HasPrefix(body.Model, "dies") {
		a.NoTerminal, a.Fault, a.FaultAt = true, ollamatest.Reset, ollamatest.AtEnd
	}
	return a
}

// Every reader gets the whole answer despite heartbeats before it and within it. If an answer breaks, the user sees the gateway's message,
// and no reader takes the answer for a complete one.
func TestReadersOfStreams(t *testing.T) {
	fake := ollamatest.Start(t)
	fake.Models("tiny:latest", "dies:latest")
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"} {
		fake.Handle("POST", path, slowly)
	}
	s := start(t, t.TempDir(), fake.URL+"?slots=99", nil, "SSE_HEARTBEAT=5ms")
	key := s.makeKey(t, `,"rate_limit":null`).Secret
	raw := call(t, "POST", s.URL+"/v1/chat/completions", key, `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"x"}]}`).want(t, 200).Body
	before, within, _ := strings.Cut(raw, `"id":"chatcmpl`)
	if beat := `"id":"","object":`; !strings.Contains(before, beat) || !strings.Contains(within, beat) {
		t.Fatalf("want heartbeats before the answer and within it: %s", raw)
	}
	for _, r := range streamReaders(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			var orders []order
			for _, model := range []string{"tiny", "dies"} {
				for _, call := range r.calls {
					orders = append(orders, order{Call: call, URL: s.URL, Key: key, Model: model})
				}
			}
			for i, g := range r.play(t, orders) {
				o := orders[i]
				if o.Model == "tiny" {
					if !g.OK || g.Text != ollamatest.Text(readerTokens) {
						t.Errorf("%s, with heartbeats: got %+v", o.Call, g)
					}
					continue
				}
				says := "the connection to the Ollama server broke: try again"
				if own := r.dumb[o.Call]; own != "" {
					says = own
				}
				helper := slices.Contains([]string{"openai, chat.stream", "openai 4, chat.stream"}, o.Call) // these calls return no text before the end
				if g.OK || !strings.Contains(g.Says, says) || g.Text == "" && !helper {
					t.Errorf("%s, with a broken answer: got %+v, want %q", o.Call, g, says)
				}
			}
		})
	}
}
