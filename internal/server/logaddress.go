package server

import (
	"net/netip"
	"regexp"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

// watches reports whether the route is for probes and scrapes. They come every few seconds; their successes are not worth a log line.
func (r *route) watches() bool {
	if r == nil {
		return false
	}
	switch r.template {
	case "/health", "/healthz", "/readyz", "/metrics":
		return true
	}
	return false
}

// withoutClient returns an error's text with the client's address shortened as LOG_CLIENT_ADDRESS demands. The errors of a client's
// connection contain its address. Other addresses stay, because the operator must be able to read those of Ollama servers.
func (s *Server) withoutClient(text string, client netip.Addr) string {
	return s.withoutAddresses(text, func(a netip.Addr) bool { return a == client })
}

func (s *Server) withoutAddresses(text string, hide func(netip.Addr) bool) string {
	if s.LogAddress != api.AddressPrefix && s.LogAddress != api.AddressNone {
		return text
	}
	return anyAddress.ReplaceAllStringFunc(text, func(found string) string {
		a, err := netip.ParseAddr(strings.Trim(found, "[]"))
		if a = a.Unmap().WithZone(""); err != nil || !hide(a) {
			return found
		}
		return s.shown(a)
	})
}

var anyAddress = regexp.MustCompile(`\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+(?:%[0-9A-Za-z]+)?\]|[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F.]*`)

// shown returns an address as it may appear in a sentence of the log.
func (s *Server) shown(a netip.Addr) string {
	if text := s.LogAddress.Show(a); text != "" {
		return text
	}
	return "(client)"
}

// from returns the origin of a change for the log. A text that is not an address, such as "local", stays as it is.
func (s *Server) from(by api.Change) string {
	if a, err := netip.ParseAddr(by.From); err == nil {
		return s.shown(a)
	}
	return by.From
}

// network returns the network of a client as the log may show it; "" if it may show nothing.
func (s *Server) network(a netip.Addr) string {
	if s.LogAddress == api.AddressPrefix || s.LogAddress == api.AddressNone {
		return s.LogAddress.Show(a)
	}
	return auth.Neighbourhood(a).String()
}

// withoutAnyClient returns the text of an error of net/http with every address shortened as LOG_CLIENT_ADDRESS demands.
func (s *Server) withoutAnyClient(text string) string {
	return s.withoutAddresses(text, func(netip.Addr) bool { return true })
}
