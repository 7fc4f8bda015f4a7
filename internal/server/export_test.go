package server

import (
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"ollama-api-service/internal/dialect"
)

var familyNames = map[dialect.Family]string{dialect.Native: "native", dialect.OpenAI: "openai", dialect.Responses: "responses", dialect.Anthropic: "anthropic"}

var LimitAddresses = limitAddresses

// Refusals calls count for each that it is told.
func Refusals(count func(string)) *refusals {
	return &refusals{log: slog.New(slog.DiscardHandler), count: func(r refusalReason) { count(string(r)) }, show: netip.Addr.String, hide: func(text string) string { return text }, by: make(map[refusalReason]*refusalSum)}
}

// CutAfter bounds how long a client may take nothing of its answer.
func (s *Server) CutAfter(d time.Duration) { s.writeProgress = d }

// ReadOn is how many answers are read on whose clients have left.
func (s *Server) ReadOn() int64 { return s.readOn.Load() }

// Line is a line of the route table as tests see it.
type Line struct {
	Method, Template   string
	Anyone, AdminsOnly bool
	Ollama, Counted    bool
	Packs              bool
	Family, Upstream   string
}

// Table is the route table.
func (s *Server) Table() []Line {
	var lines []Line
	for _, r := range s.routes.all {
		lines = append(lines, Line{
			Method: r.method, Template: r.template, Anyone: r.access == anyone, AdminsOnly: r.access.admin(),
			Ollama: r.ollama(), Counted: r.counted, Packs: r.packs(), Family: familyNames[r.family], Upstream: r.upstream,
		})
	}
	return lines
}

// WhoIsRefused is how a request without a known key is counted.
func (s *Server) WhoIsRefused(w http.ResponseWriter, r *http.Request) string {
	return s.newExchange(w, r, &s.live.Load().Live).who()
}
