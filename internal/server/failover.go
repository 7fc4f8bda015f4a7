package server

import (
	"errors"
	"net/http"
	"slices"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/explain"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// send brings the request to the server of its lease. Where no byte of an answer came, or Ollama says that it is busy, the slot goes
// back at once and the request waits for one on another server, in the time that it has. What changes a server is sent once.
func (b *booking) send(up *proxy.Request) (*proxy.Response, error) {
	for try := 1; ; try++ {
		at := b.lease.Backend
		b.x.journey.serve(b, up)
		resp, err := b.s.pools.to(at).Do(b.stay.ctx, up)
		b.s.note(at, err)
		if try == explain.MaxTries || b.x.route.class != inference || !unserved(resp, err) || !b.another(at) {
			return resp, err
		}
		if lost := b.move(resp, err); lost != nil {
			return nil, lost
		}
	}
}

// unserved says whether nothing was generated for a request: no byte of an answer came, or Ollama had no room for it. A first byte
// that is late is none of these: the model may be at work on it.
func unserved(resp *proxy.Response, err error) bool {
	if err != nil {
		return errors.Is(err, proxy.ErrUnanswered)
	}
	return resp.Status == http.StatusServiceUnavailable
}

// another says whether there is a server beside at that has the model.
func (b *booking) another(at *backend.Backend) bool {
	there := func() bool {
		return slices.ContainsFunc(b.s.Fleet.Serving(b.record.Model), func(o *backend.Backend) bool { return o != at })
	}
	if b.stay.ctx.Err() != nil {
		return false
	}
	return there() || b.s.Fleet.Revive(b.stay.ctx) && there()
}

// move gives the slot back and waits for one elsewhere. Where none comes, the failure of the first server is what the client is
// told: it says more than that of the second wait.
func (b *booking) move(resp *proxy.Response, failed error) error {
	if resp != nil {
		resp.Close()
	}
	from := b.lease.Backend
	b.slot += b.lease.Release()
	b.gpu += b.lease.GPU()
	b.waited += b.lease.Waited
	b.loading += b.lease.Loading
	b.lease = &sched.Lease{Backend: from} // holds nothing
	b.x.journey.moved(failed)
	b.x.history.Moved(whyMoved(resp, failed))
	b.s.metrics.moved(from.Name)
	lease, err := b.s.acquire(b.x, b.req, from)
	if err != nil {
		if failed == nil || api.AsError(err).Code == api.CodeClientGone {
			failed = err
		}
		return failed
	}
	b.lease, b.record.Backend = lease, lease.Backend.Name
	return nil
}

// note tells the fleet what came of a request to b. A client that left says nothing about it, and neither does one whose answer
// takes too long.
func (s *Server) note(b *backend.Backend, err error) {
	if err == nil {
		return
	}
	switch api.AsError(err).Code {
	case api.CodeNoBackend:
		s.Fleet.Failed(b, true)
	case api.CodeUpstreamError:
		s.Fleet.Failed(b, false)
	}
}

// whyMoved names the failure after which a request goes to another server; "" if the server answered with something else.
func whyMoved(resp *proxy.Response, failed error) string {
	switch {
	case failed != nil:
		return string(api.AsError(failed).Code)
	case resp.Status == http.StatusServiceUnavailable:
		return "busy"
	}
	return ""
}
