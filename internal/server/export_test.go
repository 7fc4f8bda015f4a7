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

// Refusals calls count for each refusal that is reported.
func Refusals(count func(string)) *refusals {
	return &refusals{log: slog.New(slog.DiscardHandler), count: func(r refusalReason) { count(string(r)) }, show: netip.Addr.String, hide: func(text string) string { return text }, by: make(map[refusalReason]*refusalSum)}
}

// CutAfter sets how long a client may accept no byte of its answer.
func (s *Server) CutAfter(d time.Duration) { s.writeProgress = d }

// LeaveWithin sets the largest time between the leaving of a client and the end of its exchange with Ollama.
func (s *Server) LeaveWithin(d time.Duration) { s.leaveTime = d }

// ReadOn returns the number of answers that are read on after their clients have left.
func (s *Server) ReadOn() int64 { return s.readOn.Load() }

// Line is a row of the route table for tests.
type Line struct {
	Method, Template   string
	Anyone, AdminsOnly bool
	Ollama, Counted    bool
	Packs              bool
	Family, Upstream   string
}

// Table returns the route table.
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

// WhoIsRefused returns the label under which a refused request without a known key is counted.
func (s *Server) WhoIsRefused(w http.ResponseWriter, r *http.Request) string {
	return s.newExchange(w, r, &s.live.Load().Live).who()
}

// BoundUploads bounds the bodies on their way to n.
func (s *Server) BoundUploads(n int64) { s.uploads.most = n - beyond }

// NoneUnderWay returns a channel that is closed once no request is under way.
func (s *Server) NoneUnderWay() <-chan struct{} { return s.requests.none() }

// Uploads is how many bodies are on their way.
func (s *Server) Uploads() int64 { return s.uploads.bytes() }
