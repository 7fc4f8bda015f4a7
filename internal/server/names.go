package server

import (
	"strings"
	"sync"

	"ollama-api-service/internal/api"
)

// nameModel gives a request its model's name in the books, if that was not known before and a server has run it: one that was just
// made, or one that Ollama runs off-site.
func (b *booking) nameModel(outcome api.Outcome) {
	r := &b.record
	if r.Model != api.UnknownModel || outcome != api.OutcomeOK && r.CompletionTokens == 0 {
		return
	}
	// A list that was read since may have it: a pull, a copy.
	if name := b.req.Model().String(); b.s.Fleet.Knows(name) || b.s.unlisted.take(name) {
		r.Model, r.Alias = name, b.req.Alias
	}
}

// mostUnlisted bounds the models that have their own names though no server lists them: a server may answer for any name.
const mostUnlisted = 100

// unlisted are those models.
type unlisted struct {
	mu    sync.Mutex
	names map[string]bool
}

// take reports whether a model is one of them, or becomes one.
func (u *unlisted) take(model string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.names[model] && len(u.names) < mostUnlisted {
		if u.names == nil {
			u.names = make(map[string]bool)
		}
		u.names[strings.Clone(model)] = true
	}
	return u.names[model]
}
