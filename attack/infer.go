//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// asked is what Ollama reads of a request. As in Ollama, encoding/json ignores the case of names.
type asked struct {
	Model    string
	Prompt   string
	Suffix   string
	System   string
	Template string
	Context  []int
	Input    json.RawMessage
	Images   []string
	Messages []message
	Tools    []json.RawMessage
	Format   json.RawMessage
	Stream   *bool
	Options  struct {
		NumPredict int `json:"num_predict"`
		NumCtx     int `json:"num_ctx"`
		Seed       int
	}
	MaxTokens int `json:"max_tokens"`
}

type message struct {
	Role      string
	Content   json.RawMessage
	Thinking  string
	Images    []string
	ToolCalls json.RawMessage `json:"tool_calls"`
	ToolName  string          `json:"tool_name"`
}

const (
	templateTokens = 11 // tokens that the template of the scripted model adds
	messageTokens  = 4  // additional tokens for each message
	imageTokens    = 576
)

// contextTokens is the most that remains of a longer prompt, because Ollama cuts it.
const contextTokens = 4096

// tokens returns the length of the prompt: a token is four bytes.
func (a *asked) tokens() int {
	bytes := len(a.Prompt) + len(a.Suffix) + len(a.System) + len(a.Template)
	n := templateTokens + len(a.Context) + imageTokens*len(a.Images)
	for _, m := range a.Messages {
		bytes += len(m.Content) + len(m.Thinking) + len(m.ToolCalls) + len(m.ToolName)
		n += messageTokens + imageTokens*len(m.Images)
	}
	for _, t := range a.Tools {
		bytes += len(t)
	}
	return min(n+bytes/4, contextTokens)
}

// The marks by which the scripted Ollama recognizes the parties: the gateway passes on nothing that names a key.
const (
	victimMark   = "victim"
	attackerMark = "attacker"
)

func markOf(body []byte) string {
	if strings.Contains(string(body), attackerMark) {
		return attackerMark
	}
	return victimMark
}

func (o *ollama) infer(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var a asked
	if err := json.Unmarshal(body, &a); err != nil {
		reply(w, 400, map[string]any{"error": err.Error()})
		return
	}
	model := a.Model
	if !strings.Contains(model, ":") {
		model += ":latest"
	}
	if !o.has(model) {
		reply(w, 404, map[string]any{"error": fmt.Sprintf("model %q not found", a.Model)})
		return
	}
	options := ""
	if a.Options.NumCtx > 0 {
		options = fmt.Sprint(a.Options.NumCtx)
	}
	runner := o.runnerFor(r.Context(), model, options)
	if runner == nil {
		return
	}
	defer runner.leave()
	loaded := time.Now()
	embeds := len(a.Input) > 0 && string(a.Input) != `""`
	if a.Prompt == "" && len(a.Messages) == 0 && !embeds {
		reply(w, 200, map[string]any{"model": a.Model, "created_at": loaded, "response": "", "done": true, "done_reason": "load"})
		return
	}
	mark := markOf(body)
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		w := o.markLocked(mark)
		w.requests++
		w.longest = max(w.longest, time.Since(began))
	}()
	if embeds {
		o.embed(w, r, &a, runner, mark, began, loaded)
		return
	}
	select {
	case runner.slots <- struct{}{}:
		defer func() { <-runner.slots }()
	case <-r.Context().Done():
		return
	}
	if len(a.Format) > 0 && a.Format[0] == '{' && !pause(r.Context(), o.pace.grammar) {
		return
	}
	o.generate(w, r, &a, runner, mark, began, loaded)
}

func (o *ollama) has(model string) bool {
	for _, m := range o.models {
		if m == model {
			return true
		}
	}
	return false
}

// withheld is the seed with which a request asks for a tool call. Ollama holds a tool call until all of it is generated.
const withheld = 7

// embed runs every input as its own request, all at the same time. Each waits for a slot, as in Ollama 0.6.5.
func (o *ollama) embed(w http.ResponseWriter, r *http.Request, a *asked, run *runner, mark string, began, loaded time.Time) {
	var texts []string
	if json.Unmarshal(a.Input, &texts) != nil {
		texts = []string{string(a.Input)}
	}
	inputs, vectors := make([]sequence, len(texts)), make([][]float64, len(texts))
	var all sync.WaitGroup
	tokens := 0
	for i, text := range texts {
		vectors[i] = []float64{0.5, 0.5}
		s := &inputs[i]
		*s = sequence{ctx: r.Context(), mark: mark, prompt: max(1, len(text)/4), ended: make(chan struct{})}
		tokens += s.prompt
		all.Go(func() {
			select {
			case run.slots <- struct{}{}:
				defer func() { <-run.slots }()
			case <-r.Context().Done():
				return
			}
			run.begin(s)
			<-s.ended
		})
	}
	all.Wait()
	reply(w, 200, map[string]any{
		"model": a.Model, "embeddings": vectors, "total_duration": time.Since(began), "load_duration": loaded.Sub(began),
		"prompt_eval_count": tokens,
	})
}

// generate makes the runner read the prompt and generate, and writes each piece as it arrives.
func (o *ollama) generate(w http.ResponseWriter, r *http.Request, a *asked, run *runner, mark string, began, loaded time.Time) {
	want := max(a.Options.NumPredict, a.MaxTokens)
	if want <= 0 {
		want = 16
	}
	want = min(want, 4096)
	s := &sequence{ctx: r.Context(), mark: mark, prompt: a.tokens(), want: want, pieces: make(chan struct{}, want), ended: make(chan struct{})}
	prompt, start := s.prompt, time.Now()
	run.begin(s)
	openAI := strings.HasPrefix(r.URL.Path, "/v1/")
	streams := !openAI && (a.Stream == nil || *a.Stream) || openAI && a.Stream != nil && *a.Stream
	var records []string
	switch {
	case openAI:
		records = ollamatest.ChatEvents(a.Model, prompt, want, true)
	case r.URL.Path == "/api/chat":
		records = ollamatest.ChatLines(a.Model, prompt, want)
	default:
		records = ollamatest.GenerateLines(a.Model, 0, want)
	}
	hidden := a.Options.Seed == withheld && len(a.Tools) > 0 && !openAI
	if hidden {
		records = toolCall(a.Model, want)
	}
	if streams {
		w.Header().Set("Content-Type", map[bool]string{true: "text/event-stream", false: "application/x-ndjson"}[openAI])
	}
	flusher := w.(http.Flusher)
	for i := range want {
		select {
		case <-s.pieces:
		case <-r.Context().Done():
			<-s.ended // the slot is held until the batch ends
			return
		}
		if streams && !hidden {
			if _, err := io.WriteString(w, records[i]); err != nil {
				return
			}
			flusher.Flush()
		}
	}
	if streams && hidden {
		io.WriteString(w, records[0])
		flusher.Flush()
		pause(r.Context(), 2*o.pace.step) // the token that ends the turn
	}
	usage := fmt.Sprintf(`"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d,"prompt_eval_duration":%d,`+
		`"eval_count":%d,"eval_duration":%d}`,
		time.Since(began), loaded.Sub(began), prompt, s.read.Sub(start), want, time.Since(s.read))
	switch {
	case streams && openAI:
		io.WriteString(w, records[want])
	case openAI:
		reply(w, 200, map[string]any{
			"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": a.Model,
			"choices": []any{map[string]any{
				"index": 0, "message": map[string]any{"role": "assistant", "content": ollamatest.Text(want)}, "finish_reason": "length",
			}},
			"usage": map[string]any{"prompt_tokens": prompt, "completion_tokens": want, "total_tokens": prompt + want},
		})
	default:
		text := ""
		if !streams {
			text = ollamatest.Text(want)
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
		}
		said := fmt.Sprintf(`"response":%q`, text)
		if r.URL.Path == "/api/chat" {
			said = fmt.Sprintf(`"message":{"role":"assistant","content":%q}`, text)
		}
		fmt.Fprintf(w, `{"model":%q,"created_at":"2026-11-23T12:59:03.5Z",%s,"done":true,"done_reason":"length",%s`+"\n", a.Model, said, usage)
	}
}

// toolCall returns the one record of a tool call with that many tokens.
func toolCall(model string, tokens int) []string {
	text := strings.Repeat("word", tokens)
	return []string{fmt.Sprintf(`{"model":%q,"created_at":"2026-11-23T12:59:03.5Z","message":{"role":"assistant","content":"",`+
		`"tool_calls":[{"function":{"name":"f","arguments":{"text":%q}}}]},"done":false}`+"\n", model, text)}
}
