package backend

import "maps"

// usualContext is the context that a server gave a model without num_ctx, and the model's digest at that time.
type usualContext struct {
	digest string
	tokens int64
}

// LoadedPlainly notes that the server has just loaded model without load-time options, and that its lists were read afterwards. The
// context that it lists for the model is then the one of a request without num_ctx. The gateway forgets it when the server fails,
// has another version, or has no model in memory, because its settings may have changed.
func (b *Backend) LoadedPlainly(model string) {
	b.change(func(s *State) {
		tokens := s.Loaded[model].Context
		if tokens <= 0 {
			return
		}
		usual := maps.Clone(s.usual)
		if usual == nil {
			usual = make(map[string]usualContext)
		}
		usual[model] = usualContext{s.Installed[model].Digest, tokens}
		s.usual = usual
	})
}

// Context returns the smallest context that a request for model has without num_ctx on the servers that may serve it, if its
// Modelfile does not set one. It returns 0 if the context is unknown for one of them. split reports that on one of them, only a part
// of the model is in the memory of the graphics card.
func (f *Fleet) Context(model string) (least int64, split bool) {
	known := true
	for i, b := range f.Serving(model) {
		s := b.state.Load()
		split = split || s.Loaded[model].Split
		usual, said := s.usual[model]
		known = known && said && usual.digest == s.Installed[model].Digest
		if i == 0 || usual.tokens < least {
			least = usual.tokens
		}
	}
	if !known {
		least = 0
	}
	return least, split
}
