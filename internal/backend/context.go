package backend

import "maps"

// usualContext is the context that a server gave a model without a num_ctx, and the digest that it had then.
type usualContext struct {
	digest string
	tokens int64
}

// LoadedPlainly notes that the server has just loaded model without load-time options, and that its lists were read since: the context
// that it names for the model is what a request without num_ctx has there. It is forgotten when the server fails, has another
// version, or has nothing in its memory any more, because its settings may be others then.
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

// Context is the smallest context that a request for model has without a num_ctx on the servers that may serve it, where its Modelfile
// does not say it; 0 where that is not known of each of them. split reports that one of them has the model partly in the memory of its
// graphics card and partly not.
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
