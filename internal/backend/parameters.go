package backend

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

const (
	showWait    = time.Second      // the longest that requests wait for the answer about a model
	showTimeout = 10 * time.Second // and the longest that it may take: it is kept for those that come later
	showAgain   = 10 * time.Second // before a server that failed, or that lists no models, is asked again
	mostShown   = 4096             // answers that are kept, of a few bytes each
)

// shown is what one server says of one digest. A digest covers the parameters too, so its answer never changes.
type shown struct {
	done       chan struct{}
	parameters api.Parameters // of done; none where the server failed
	until      time.Time      // of done; zero: for ever
	late       bool           // a request has waited in vain: the others do not
}

// shows are the answers by digest; for models that no server lists, by name.
type shows struct {
	mu sync.Mutex
	by map[string]*shown
}

// Parameters are what the Modelfile of model sets. A server is asked once for each digest, and all requests wait for that one answer, a
// second in all: without it, nothing is known. A model that is made again has another digest, which a probe finds within seconds.
func (f *Fleet) Parameters(ctx context.Context, model string) api.Parameters {
	b, digest := f.holder(model)
	if b == nil {
		return api.Parameters{}
	}
	s, wait := f.shows.ask(b, model, digest)
	if wait {
		timer := time.NewTimer(showWait)
		defer timer.Stop()
		select {
		case <-s.done:
		case <-ctx.Done():
		case <-timer.C:
			f.shows.mu.Lock()
			s.late = true
			f.shows.mu.Unlock()
		}
	}
	select {
	case <-s.done:
		return s.parameters
	default:
		return api.Parameters{}
	}
}

// holder is a server that would be given requests for model, and the digest it has under the name: "" where it does not list it.
func (f *Fleet) holder(model string) (*Backend, string) {
	serving := f.Serving(model)
	for _, b := range serving {
		if m, ok := b.state.Load().Installed[model]; ok && m.Digest != "" {
			return b, m.Digest
		}
	}
	if len(serving) == 0 {
		return nil, ""
	}
	return serving[0], ""
}

// ask is the answer about a digest, which is asked for where there is none yet, and whether it is worth waiting for.
func (s *shows) ask(b *Backend, model, digest string) (*shown, bool) {
	key := digest
	if key == "" {
		key = "name " + model
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.by[key]; known != nil {
		select {
		case <-known.done:
			if known.until.IsZero() || time.Now().Before(known.until) {
				return known, false
			}
		default:
			return known, !known.late
		}
	}
	if s.by == nil || len(s.by) >= mostShown {
		s.by = make(map[string]*shown) // clients choose names: what is still wanted is asked for again
	}
	asked := &shown{done: make(chan struct{})}
	s.by[key] = asked
	go func() {
		defer close(asked.done)
		var err error
		if asked.parameters, err = b.parameters(model); err != nil || digest == "" {
			asked.until = time.Now().Add(showAgain)
		}
	}()
	return asked, true
}

// parameters asks the server what it has in the Modelfile of model.
func (b *Backend) parameters(model string) (api.Parameters, error) {
	// Not the context of the request that asks first: others may wait for the answer.
	ctx, cancel := context.WithTimeout(context.Background(), showTimeout)
	defer cancel()
	question, err := json.Marshal(map[string]string{"model": model})
	if err != nil {
		return api.Parameters{}, err
	}
	var answer struct{ Parameters string }
	if err := b.ask(ctx, http.MethodPost, "/api/show", question, maxList, &answer); err != nil {
		return api.Parameters{}, err
	}
	return parseParameters(answer.Parameters), nil
}

// parseParameters reads the lines of a Modelfile's parameters as /api/show writes them: a name, spaces, and a value as Go writes it.
// Of a name that comes twice the last counts, as it does in a Modelfile.
func parseParameters(text string) (p api.Parameters) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "num_predict":
			p.NumPredict = amount(value)
		case "num_ctx":
			p.NumCtx = amount(value)
		}
	}
	return p
}

// amount is a number from 1 on; what is below stands for no bound, and is 0 here.
func amount(value string) int64 {
	value = strings.TrimSpace(value)
	if unquoted, err := strconv.Unquote(value); err == nil {
		value = unquoted
	}
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || !(n >= 1) {
		return 0
	}
	return int64(min(n, math.MaxInt32))
}
