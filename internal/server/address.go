package server

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"

	"ollama-api-service/internal/api"
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

// errorLog takes what net/http says of connections, which names their addresses.
func (s *Server) errorLog() *log.Logger { return log.New(connectionLog{s}, "", 0) }

type connectionLog struct{ s *Server }

func (l connectionLog) Write(line []byte) (int, error) {
	if l.s.Log.Enabled(context.Background(), slog.LevelDebug) {
		everyAddress := func(netip.Addr) bool { return true }
		l.s.Log.Debug(l.s.withoutAddresses(string(bytes.TrimSpace(line)), everyAddress))
	}
	return len(line), nil
}
