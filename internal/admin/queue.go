package admin

import (
	"context"
	"time"

	"ollama-api-service/internal/api"
)

type queueBody struct {
	Waiting  int           `json:"waiting" doc:"Requests of all keys that are waiting for a slot"`
	Limit    int           `json:"limit" doc:"The most requests that can wait (MAX_QUEUE)"`
	InFlight int           `json:"in_flight" doc:"Requests of all keys that have a slot"`
	Requests []queued      `json:"requests" nullable:"false" doc:"The waiting requests of your key; for an admin key, all of them. Sorted by model, then by position"`
	Backends []busyBackend `json:"backends,omitempty" nullable:"false" doc:"The Ollama servers; only for admin keys"`
}

// queued is a request that waits.
type queued struct {
	RequestID  string  `json:"request_id" doc:"The X-Request-Id of its answer" example:"019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"`
	Key        string  `json:"key" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyName    string  `json:"key_name,omitempty" example:"Production API Key"`
	Model      string  `json:"model" example:"llama3.2:latest"`
	Class      string  `json:"class" enum:"interactive,batch"`
	Position   int     `json:"position" doc:"Position among the requests that wait for the model; 1 is next. A request that arrives later can be served first"`
	WaitedMS   float64 `json:"waited_ms" doc:"How long it has waited"`
	ExpectedMS float64 `json:"expected_wait_ms" doc:"Expected further wait, from how long recent requests held their slots"`
}

type busyBackend struct {
	Name     string      `json:"name" example:"gpu1"`
	Healthy  bool        `json:"healthy"`
	Draining bool        `json:"draining"`
	InFlight int         `json:"in_flight" doc:"Running requests and loads"`
	Models   []busyModel `json:"models" nullable:"false" doc:"Models in its memory, or being loaded"`
}

type busyModel struct {
	Model    string `json:"model" example:"llama3.2:latest"`
	State    string `json:"state" enum:"loaded,loading,unknown" doc:"unknown: it was requested, and the server has not reported since whether it is loaded"`
	InFlight int    `json:"in_flight"`
	Slots    int    `json:"slots" doc:"Concurrent requests that it gets: set, or found by observation"`
}

type queueOut struct{ Body queueBody }

// queue shows a user's key only its own requests: those of other keys are private.
func (s *Service) queue(ctx context.Context, _ *struct{}) (*queueOut, error) {
	k := callerOf(ctx).Key
	admin := k.Role == api.RoleAdmin
	busy := s.Sched.Snapshot()
	body := queueBody{Waiting: busy.Waiting, Limit: busy.Limit, InFlight: busy.InFlight, Requests: []queued{}}
	names := map[string]api.Key{k.Preview: *k}
	if admin {
		var err error
		if names, err = s.keyNames(ctx); err != nil {
			return nil, err
		}
		body.Backends = s.busyBackends(busy.ByBackend)
	}
	for _, p := range s.Sched.Queue() {
		if admin || p.Key == k.Preview {
			body.Requests = append(body.Requests, queued{
				RequestID: p.ID, Key: p.Key, KeyName: names[p.Key].Name, Model: p.Model, Class: p.Class, Position: p.Position,
				WaitedMS: api.Milliseconds(p.Waited), ExpectedMS: float64(p.Expected / time.Millisecond),
			})
		}
	}
	return &queueOut{body}, nil
}

func (s *Service) busyBackends(inFlight map[string]int) []busyBackend {
	list := []busyBackend{}
	place := map[string]int{}
	for i, b := range s.Fleet.All() {
		state := b.State()
		list = append(list, busyBackend{
			Name: b.Name, Healthy: state.Healthy, Draining: state.Draining, InFlight: inFlight[b.Name], Models: []busyModel{},
		})
		place[b.Name] = i
	}
	for _, st := range s.Sched.Models() {
		i, ok := place[st.Backend]
		if !ok {
			continue // it was added just now
		}
		m := busyModel{Model: st.Model, State: "unknown", InFlight: st.InFlight, Slots: st.Slots}
		switch {
		case st.Loading:
			m.State = "loading"
		case st.Loaded:
			m.State = "loaded"
		}
		list[i].Models = append(list[i].Models, m)
	}
	return list
}
