package server

import (
	"sync"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/proxy"
)

// pools holds the connections to each server of the fleet.
type pools struct {
	fleet *backend.Fleet
	known sync.Map // *proxy.Upstream by *backend.Backend

	following sync.Mutex // makes the newest state of the fleet the last one that is passed on
}

func (p *pools) open(b *backend.Backend) { p.known.Store(b, proxy.NewUpstream(b.Target)) }

// follow tells the connection pool of each server whether the server is healthy.
func (p *pools) follow() {
	p.following.Lock()
	defer p.following.Unlock()
	p.known.Range(func(key, value any) bool {
		b, u := key.(*backend.Backend), value.(*proxy.Upstream)
		if s := b.State(); s.Healthy || s.Checked.IsZero() && s.Version == "" {
			u.Up() // also before the first probe, when the state is unknown
		} else {
			u.Down(func() bool { return p.fleet.Healthy() > 0 })
		}
		return true
	})
}

// to returns the pool of b. If b was removed while a request was on its way to it, to returns a new pool that keeps no connections.
func (p *pools) to(b *backend.Backend) *proxy.Upstream {
	if u, ok := p.known.Load(b); ok {
		return u.(*proxy.Upstream)
	}
	u := proxy.NewUpstream(b.Target)
	u.Close()
	return u
}

// renew makes later requests to b use new connections.
func (p *pools) renew(b *backend.Backend) {
	if u, ok := p.known.Load(b); ok {
		u.(*proxy.Upstream).Renew()
	}
}

// close closes the idle connections to b, and the others as soon as they are idle.
func (p *pools) close(b *backend.Backend) {
	if u, ok := p.known.LoadAndDelete(b); ok {
		u.(*proxy.Upstream).Close()
	}
}

func (p *pools) closeAll() {
	p.known.Range(func(b, _ any) bool {
		p.close(b.(*backend.Backend))
		return true
	})
}

// join makes the service ready for requests to b.
func (s *Server) join(b *backend.Backend) {
	s.pools.open(b)
	s.metrics.failover.WithLabelValues(b.Name) // from the start, because a rate needs a 0 before the first failover
}
