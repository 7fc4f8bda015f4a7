package server

import (
	"sync"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/proxy"
)

// pools are the connections to each server of the fleet.
type pools struct {
	header, value string   // of OLLAMA_AUTH_HEADER
	known         sync.Map // *proxy.Upstream by *backend.Backend
}

func (p *pools) open(b *backend.Backend) {
	p.known.Store(b, proxy.NewUpstream(b.URL, p.header, p.value))
}

// to is the pool of b. One that was removed while a request was on its way to it has a pool that keeps nothing.
func (p *pools) to(b *backend.Backend) *proxy.Upstream {
	if u, ok := p.known.Load(b); ok {
		return u.(*proxy.Upstream)
	}
	u := proxy.NewUpstream(b.URL, p.header, p.value)
	u.Close()
	return u
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
