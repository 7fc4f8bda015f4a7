package server

import (
	"context"
	"encoding/json"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// Load brings a model into the memory of b with a request that has nothing to answer, and returns when the server lists it. It is
// not the request of a client, which would end the load for all who wait for it if the client left.
func (s *Server) Load(ctx context.Context, b *backend.Backend, a *sched.Ask) error {
	path, body := "/api/generate", map[string]any{"model": a.Model}
	if a.Embeds || b.State().Installed[a.Model].Embeds {
		path = "/api/embed" // which alone loads a model that makes embeddings
	}
	if a.Options != nil {
		body["options"] = json.RawMessage(a.Options)
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := s.pools.to(b).Do(ctx, &proxy.Request{Method: "POST", Path: path, Body: text, UserAgent: backend.Agent, FirstByte: s.FirstByte, Idle: s.Idle})
	if err != nil {
		s.note(b, err)
		return err
	}
	defer resp.Close()
	answer, _, err := resp.Head(maxSentence)
	switch {
	case err != nil:
		s.note(b, err)
		return err
	case !good(resp.Status):
		return api.Errorf(api.CodeUpstreamError, "the Ollama server could not load the model: %s", dialect.Sentence(answer))
	}
	s.Fleet.Reread(ctx, b)
	return nil
}
