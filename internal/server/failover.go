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

// send sends the request to the server of its lease. If no byte of an answer comes, or Ollama answers that it is busy, send releases the
// slot at once, and the request waits for a slot on another server until its deadline.
func (b *booking) send(up *proxy.Request) (*proxy.Response, error) {
	for try := 1; ; try++ {
		at := b.lease.Backend
		b.sends(up)
		resp, err := b.sendTo(at, up)
		if try == explain.MaxTries || !unserved(resp, err) || !b.another(at) {
			return resp, err
		}
		if lost := b.move(resp, err); lost != nil {
			return nil, lost
		}
	}
}

// unserved reports whether nothing was generated for a request: no byte of an answer came, or Ollama was too busy. A late first byte does
// not count, because the model may be working on the request.
func unserved(resp *proxy.Response, err error) bool {
	if err != nil {
		return errors.Is(err, proxy.ErrUnanswered)
	}
	return resp.Status == http.StatusServiceUnavailable
}

// another reports whether a server other than at has the model.
func (b *booking) another(at *backend.Backend) bool {
	there := func() bool {
		return slices.ContainsFunc(b.s.Fleet.Serving(b.record.Model), func(o *backend.Backend) bool { return o != at })
	}
	if b.upstream.ctx.Err() != nil {
		return false
	}
	return there() || b.s.Fleet.Revive(b.upstream.ctx) && there()
}

// move releases the slot and waits for one on another server. If no slot becomes free, the client gets the failure of the first server,
// because it says more than the failure of the second wait.
func (b *booking) move(resp *proxy.Response, failed error) error {
	if resp != nil {
		resp.Close()
	}
	from := b.lease.Backend
	b.slot += b.lease.Release()
	b.gpu += b.lease.GPU()
	b.charged += b.lease.Charged()
	b.waited += b.lease.Waited
	b.loading += b.lease.Loading
	b.lease = &sched.Lease{Backend: from} // it holds no slot
	b.moved(from.Name, resp, failed)
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

// whyMoved names the failure because of which a request moves to another server. It returns "" if the server answered with another status.
func whyMoved(resp *proxy.Response, failed error) string {
	switch {
	case failed != nil:
		return string(api.AsError(failed).Code)
	case resp.Status == http.StatusServiceUnavailable:
		return "busy"
	}
	return ""
}
