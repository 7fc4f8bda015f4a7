package server

import (
	"net/http"
	"net/netip"

	"ollama-api-service/internal/api"
)

// Live is the settings that can change while the service runs. A request sees one value of it whole, from its beginning to its end.
type Live struct {
	DefaultLimits  map[api.Role]int64
	StaticAdmin    bool // an admin key outside the store exists: the last stored one may go
	TrustedProxies []netip.Prefix
	Aliases        api.Aliases
	Policy         []api.ModelPolicy // the operator's, before Standard
	Standard       api.Policy        // what users' requests may set where nothing else is said
	Registries     []string          // hosts that models may come from beside Ollama's own
	Origins        []api.Origin      // whose pages may call from a browser
}

// snapshot is one value of Live with the handler whose requests see it.
type snapshot struct {
	Live
	handler http.Handler
}

// Change takes settings over. Requests that are under way keep those that they began with. l must not be changed afterwards.
func (s *Server) Change(l Live) {
	now := &snapshot{Live: l}
	now.handler = crossOrigin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, &now.Live) }), l.Origins)
	s.live.Store(now)
}

// trusted is the trusted proxies of now, for what is not a request yet.
func (s *Server) trusted() []netip.Prefix { return s.live.Load().TrustedProxies }
