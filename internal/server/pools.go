package server

import (
	"sync"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/proxy"
)

// pools are the connections to each server of the fleet.
type pools struct {
	fleet *backend.Fleet
	known sync.Map // *proxy.Upstream by *backend.Backend

	following sync.Mutex // what was read of the fleet last is passed on last
}

func (p *pools) open(b *backend.Backend) { p.known.Store(b, proxy.NewUpstream(b.Target)) }

// follow passes on to the connections of each server whether it answers.
func (p *pools) follow() {
	p.following.Lock()
	defer p.following.Unlock()
	p.known.Range(func(key, value any) bool {
		b, u := key.(*backend.Backend), value.(*proxy.Upstream)
		if s := b.State(); s.Healthy || s.Checked.IsZero() && s.Version == "" {
			u.Up() // also before the first probe, which says nothing about it
		} else {
			u.Down(func() bool { return p.fleet.Healthy() > 0 })
		}
		return true
	})
}

// to is the pool of b. One that was removed while a request was on its way to it has a pool that keeps nothing.
func (p *pools) to(b *backend.Backend) *proxy.Upstream {
	if u, ok := p.known.Load(b); ok {
		return u.(*proxy.Upstream)
	}
	u := proxy.NewUpstream(b.Target)
	u.Close()
	return u
}

// renew has later requests to b made on new connections.
func (p *pools) renew(b *backend.Backend) {
	if u, ok := p.known.Load(b); ok {
		u.(*proxy.Upstream).Renew()
	}
}

// close drops the connections to b that are idle, and each other as soon as it is.
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
	s.metrics.failover.WithLabelValues(b.Name) // from the start: a rate needs the 0 before the first
}
