package server

import (
	"net/netip"
	"regexp"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

// watches reports whether the route is for probes and scrapes: they come every few seconds and say nothing while they succeed.
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

// withoutClient is the text of an error with the client's address in the detail that the log may show. The address is in the errors of
// its connection. Other addresses stay: those of Ollama servers must be read.
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

// shown is an address in the detail that the log may show, in a sentence.
func (s *Server) shown(a netip.Addr) string {
	if text := s.LogAddress.Show(a); text != "" {
		return text
	}
	return "(client)"
}

// from is where a change came from, for the log. What is no address stays: it is a word like local.
func (s *Server) from(by api.Change) string {
	if a, err := netip.ParseAddr(by.From); err == nil {
		return s.shown(a)
	}
	return by.From
}

// network is the network of a client as far as the log may have it; "" is nothing.
func (s *Server) network(a netip.Addr) string {
	if s.LogAddress == api.AddressPrefix || s.LogAddress == api.AddressNone {
		return s.LogAddress.Show(a)
	}
	return auth.Neighbourhood(a).String()
}

// withoutAnyClient is the text of an error of net/http with every address in the detail that the log may show.
func (s *Server) withoutAnyClient(text string) string {
	return s.withoutAddresses(text, func(netip.Addr) bool { return true })
}
