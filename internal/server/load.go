package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// preload brings a model into a server's memory for the requests that wait for it, with the load-time options of the one that goes
// first: it would have the model loaded again otherwise. ctx is the scheduler's, for Ollama breaks a load off whose request has gone.
func (s *Server) preload(ctx context.Context, b *backend.Backend, a *sched.Ask) error {
	began := time.Now()
	err := s.load(ctx, b, a)
	took := time.Since(began)
	s.metrics.changed(b.Name, took, err)
	if err != nil {
		s.note(b, err)
		if ctx.Err() == nil {
			s.Log.Warn("a model could not be loaded", "backend", b.Name, "model", a.Model, "request_id", a.ID,
				"ms", api.Milliseconds(took), "cause", err.Error())
		}
		return err
	}
	s.Log.Info("model loaded", "backend", b.Name, "model", a.Model, "request_id", a.ID, "ms", api.Milliseconds(took))
	s.Fleet.Reread(ctx, b) // now its memory holds it, and may have lost another
	if a.Options == nil {
		b.LoadedPlainly(a.Model)
	}
	return nil
}

// found notes a load that was seen only by the request that waited for it: its server was said to have the model in its memory.
func (s *Server) found(l *sched.Lease, r *api.Record) {
	took := l.FoundLoad()
	if took == 0 {
		return
	}
	s.metrics.loaded(r.Backend, "found", took)
	s.Log.Info("model loaded again", "backend", r.Backend, "model", r.Model, "request_id", r.ID, "ms", api.Milliseconds(took))
}

// load is Ollama's own way to load a model: a request without a prompt. Models that make embeddings alone refuse that, but take one
// for the embeddings of nothing.
func (s *Server) load(ctx context.Context, b *backend.Backend, a *sched.Ask) error {
	call := struct {
		Model   string          `json:"model"`
		Input   *string         `json:"input,omitempty"`
		Options json.RawMessage `json:"options,omitempty"`
	}{Model: a.Model, Options: a.Options}
	path := "/api/generate"
	if a.Embeds || b.State().Installed[a.Model].Embeds {
		path, call.Input = "/api/embed", new(string)
	}
	body, err := json.Marshal(call)
	if err != nil {
		return err
	}
	resp, err := s.pools.to(b).Do(ctx, &proxy.Request{
		Method: http.MethodPost, Path: path, Body: dialect.Pieces{body}, UserAgent: backend.Agent, FirstByte: s.FirstByte, Idle: s.Idle,
	})
	if err != nil {
		return err
	}
	defer resp.Close()
	answer, _, err := resp.Head(maxSentence)
	if err != nil {
		return err
	}
	// Before 0.12.6 Ollama told of a failed load under status 200.
	if sentence := dialect.Sentence(answer); !good(resp.Status) || sentence != "" {
		return api.Errorf(api.CodeInternal, "%d %s", resp.Status, sentence) // whose turn it is asks by itself, and is told
	}
	return nil
}
