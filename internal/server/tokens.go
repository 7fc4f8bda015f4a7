package server

import (
	"encoding/json"
	"net/http"
	"time"

	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/sched"
)

// Bounds of a context, in tokens.
const (
	minContext   = 4    // Ollama raises smaller ones to it
	leastContext = 2048 // the smallest default of all versions
)

// count takes over what the terminal record said, or what passed where there is none.
func (b *booking) count(u dialect.Usage, records int64) {
	r := &b.record
	if u.Counted {
		r.PromptTokens, r.CompletionTokens = u.PromptTokens, u.CompletionTokens
		r.OllamaTotal, r.OllamaLoad, r.OllamaPromptEval, r.OllamaEval = u.Total, u.Load, u.PromptEval, u.Completion
		if u.Total != nil {
			inside := *u.Total
			for _, part := range []*time.Duration{u.Load, u.PromptEval, u.Completion} {
				if part != nil { // what took no time is left out
					inside -= *part
				}
			}
			b.lease.NoteWaitInside(inside)
			var load time.Duration
			if u.Load != nil {
				load = *u.Load
			}
			b.lease.NoteLoad(load)
		}
		if u.PromptEval != nil {
			b.lease.NotePrompt(*u.PromptEval)
		}
		if b.twice {
			r.CompletionTokens = max(r.CompletionTokens, records)
			return // and nothing is learned from the counts of a part
		}
		b.learn(u)
		return
	}
	status := b.record.Status
	if b.x.route.purpose != inference || status >= 400 && status < 500 || status == http.StatusServiceUnavailable {
		return // nothing was generated; who knows of what ended in a 500
	}
	r.PromptTokens, r.CompletionTokens, r.Estimated = b.req.PromptTokens, records, true
}

// learn notes what Ollama has counted, for requests whose clients leave before it does.
func (b *booking) learn(u dialect.Usage) {
	var took time.Duration
	switch {
	case u.Completion != nil:
		took = *u.Completion
	case b.record.Streamed && b.record.FirstByte > 0:
		took = time.Since(b.x.arrived) - b.record.FirstByte
	}
	b.lease.NoteTokens(b.prompt(true), u.PromptTokens, u.CompletionTokens, took)
}

// prompt is what the request's prompt may have. Of a client that has left and of which nothing is known, the most is expected: otherwise
// one that always leaves would never pay for what is expensive.
func (b *booking) prompt(read bool) sched.Prompt {
	p := b.req.Prompt
	unknown := p.Most
	if read {
		unknown = p.Likely
	}
	return sched.Prompt{Estimate: p.Estimate, Likely: p.Likely, Text: p.Text, Most: p.Most, Unknown: unknown}
}

// leaving returns how long the exchange with Ollama may go on after the client of an inference has left.
func (b *booking) leaving() func() time.Duration {
	lease, prompt, stream, most := b.lease, b.prompt(false), b.req.Stream, b.s.leaveTime // it runs while b changes
	return func() time.Duration {
		if stream {
			return most
		}
		return min(most, lease.ReadingLeft(prompt))
	}
}

// bookUpwards raises the estimate for a client that has left to what Ollama has most likely done by then. What has passed is less: Ollama
// keeps a tool call back until it is whole, and a client that leaves each time before the end would never pay for its prompt's template.
func (b *booking) bookUpwards() {
	answer := b.bookPrompt(false)
	switch most := b.req.MaxOutput; {
	case most > 0:
		answer = min(answer, most)
	case most == 0:
		answer = 0
	}
	b.record.CompletionTokens = max(b.record.CompletionTokens, answer)
}

// bookPrompt raises the estimate of a prompt that Ollama does not count to what it most likely was, and returns how long the answer was.
// read says that the client has read the answer to its end.
func (b *booking) bookPrompt(read bool) (answer int64) {
	r := &b.record
	prompt, answer := b.lease.Expected(b.prompt(read), r.CompletionTokens == 0)
	r.PromptTokens = max(r.PromptTokens, prompt)
	if context := b.context(); context > 0 { // Ollama cuts what is longer
		r.PromptTokens = min(r.PromptTokens, context)
	}
	return answer
}

// context is how many tokens of the prompt Ollama reads at most; 0: not known. What the request asks for goes before what its model
// has by itself; a model that is loaded with more stays so.
func (b *booking) context() int64 {
	var asked struct {
		Context float64 `json:"num_ctx"`
	}
	_ = json.Unmarshal(b.req.LoadOptions, &asked) // it was made here
	model := b.req.Model()
	context := int64(asked.Context)
	if context <= 0 && !model.Cloud() {
		context = b.s.Fleet.Parameters(b.x.r.Context(), model.String()).NumCtx
	}
	loaded := b.lease.Backend.State().Loaded[model.String()].Context
	switch {
	case context > 0:
		context = max(context, loaded, minContext)
	case loaded > 0:
		context = max(loaded, leastContext) // it may have been loaded again since
	}
	if b.x.route.kind.Embeds() {
		context *= b.req.Prompt.Texts
	}
	return context
}
