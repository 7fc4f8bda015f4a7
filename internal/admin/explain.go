package admin

import (
	"context"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/explain"
)

// ExplainPath is exported because huma ignores embedded structs with unexported names.
type ExplainPath struct {
	ID string `path:"request_id" maxLength:"128" doc:"The X-Request-Id of the answer" example:"019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"`
}

type explainOut struct{ Body explain.Explained }

var errUnknownRequest = api.Errorf(api.CodeNotFound, "no request with this id is known: send the X-Request-Id of an inference request that was admitted")

func (s *Service) explain(ctx context.Context, in *ExplainPath) (*explainOut, error) {
	names, err := s.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	var e explain.Explained
	if t := s.Recent.Find(in.ID); t != nil {
		e = t.Explain(time.Now())
		if e.State == "waiting" {
			for _, p := range s.Sched.Queue() {
				if p.ID == in.ID {
					ms := float64(p.Expected / time.Millisecond)
					e.Position, e.ExpectedMS = &p.Position, &ms
				}
			}
		}
	} else {
		s.settle(ctx)
		r, ok, err := s.Store.Request(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errUnknownRequest
		}
		e = explain.FromRow(&r, names[r.Key])
	}
	e.KeyName = names[e.Key].Name
	e.Words = e.Sentences()
	return &explainOut{e}, nil
}
