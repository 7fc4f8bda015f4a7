package server

import (
	"strings"
	"sync"

	"ollama-api-service/internal/api"
)

// nameModel sets the model's name in the record of a request whose model was unknown when it began, if a server has run it. Such a model
// was just created, or Ollama runs it in the cloud.
func (b *booking) nameModel(outcome api.Outcome) {
	r := &b.record
	if r.Model != api.UnknownModel || outcome != api.OutcomeOK && r.CompletionTokens == 0 {
		return
	}
	// A list that was read in the meantime may have it, after a pull or a copy.
	if name := b.req.Model().String(); b.s.Fleet.Knows(name) || b.s.unlisted.take(name) {
		r.Model, r.Alias = name, b.req.Alias
	}
}

// mostUnlisted bounds the number of unlisted models that keep their own names: a server may answer for any name.
const mostUnlisted = 100

// unlisted holds the names of models that a server has run although no server lists them.
type unlisted struct {
	mu    sync.Mutex
	names map[string]bool
}

// take adds a model if there is room, and reports whether the model is in the set.
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
