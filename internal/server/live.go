package server

import (
	"net/http"
	"net/netip"

	"ollama-api-service/internal/api"
)

// Live holds the settings that can change while the service runs. Each request uses one value of it from beginning to end.
type Live struct {
	DefaultLimits  map[api.Role]int64
	StaticAdmin    bool // an admin key outside the store exists, so the last stored one may be revoked
	TrustedProxies []netip.Prefix
	Aliases        api.Aliases
	Policy         []api.ModelPolicy // set by the operator; they take precedence over Standard
	Standard       api.Policy        // what users' requests may set if no other policy applies
	Registries     []string          // hosts that models may come from, in addition to Ollama's own
	Origins        []api.Origin      // origins whose pages may call the service from a browser
}

// snapshot is one value of Live with the handler whose requests use it.
type snapshot struct {
	Live
	handler http.Handler
}

// Change applies new settings. Requests under way keep the settings that they began with. The caller must not change l afterwards.
func (s *Server) Change(l Live) {
	now := &snapshot{Live: l}
	now.handler = crossOrigin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, &now.Live) }), l.Origins)
	s.live.Store(now)
}

// trusted returns the current trusted proxies, for connections that have no request yet.
func (s *Server) trusted() []netip.Prefix { return s.live.Load().TrustedProxies }
