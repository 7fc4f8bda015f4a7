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
	showWait    = time.Second      // the longest time that requests wait for the answer about a model
	showTimeout = 10 * time.Second // the longest time that the answer may take: later requests use it
	showAgain   = 10 * time.Second // before a server that failed, or that lists no models, is asked again
	mostShown   = 4096             // the number of answers kept, of a few bytes each
)

// shown is a server's answer about one digest. A digest covers the parameters too, so the answer never changes.
type shown struct {
	done       chan struct{}
	parameters api.Parameters // valid when done is closed; empty if the server failed
	until      time.Time      // valid when done is closed; zero: no expiry
	late       bool           // a request has waited without an answer: the others do not wait
}

// shows has the answers by digest, or by name for models that no server lists.
type shows struct {
	mu sync.Mutex
	by map[string]*shown
}

// Parameters returns what the Modelfile of model sets. A server is asked once for each digest. All requests wait for that one
// answer, up to a second in total; without it, they get empty parameters. A model that is created again has another digest, which a
// probe finds within seconds.
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

// holder returns a server that would get requests for model, and the digest that it has under the name: "" if it does not list the
// name.
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

// ask returns the answer about a digest, and whether to wait for it. If there is no answer yet, ask asks the server.
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
		s.by = make(map[string]*shown) // clients choose names: what is still needed is asked again
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

// parameters asks the server for the parameters in the Modelfile of model.
func (b *Backend) parameters(model string) (api.Parameters, error) {
	// This is not the context of the first request, because others may wait for the answer.
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

// parseParameters reads the parameters of a Modelfile as /api/show writes them: a name, spaces, and a value as Go writes it. If a
// name appears twice, the last value counts, as in a Modelfile.
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

// amount returns a number from 1 on. Lower numbers mean no bound, and are 0 here.
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
