package server

import (
	"cmp"
	"strings"
	"time"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/sched"
	"ollama-api-service/internal/store"
)

// ollamaRuns is Ollama's answer to GET /. Its clients look for these 17 bytes.
const ollamaRuns = "Ollama is running"

// root answers Ollama's clients as Ollama does. All other clients get a description of this service.
func (s *Server) root(x *exchange) error {
	accept := x.r.Header.Get("Accept")
	if strings.HasPrefix(x.r.UserAgent(), "ollama") || strings.HasPrefix(accept, "text/plain") {
		return x.send("text/plain; charset=utf-8", []byte(ollamaRuns))
	}
	return x.sendJSON(map[string]any{
		"service": "ollama-api-service", "version": s.Version, "status": "running",
		"documentation": s.BasePath + "/docs", "openapi": s.BasePath + "/openapi.json", "health": s.BasePath + "/health",
		"endpoints": s.routes.listed,
	})
}

// version answers with the version of the oldest server. Clients decide by it which features to use, and any server may get the request.
func (s *Server) version(x *exchange) error {
	v := s.oldest()
	if v == "" {
		return api.Errorf(api.CodeNoBackend, "the Ollama server cannot be reached: try again soon, or ask the operator")
	}
	return x.sendJSON(map[string]string{"version": v})
}

// oldest returns the lowest version of the healthy servers. If no server is healthy, it returns the lowest version that was last seen, or
// "" if no version was seen.
func (s *Server) oldest() string {
	var known, healthy backend.State
	for _, b := range s.Fleet.All() {
		state := b.State()
		if state.Version != "" && (known.Version == "" || state.Older(known.Version)) {
			known = state
		}
		if state.Healthy && (healthy.Version == "" || state.Older(healthy.Version)) {
			healthy = state
		}
	}
	return cmp.Or(healthy.Version, known.Version)
}

type healthReport struct {
	Status        string                `json:"status"`
	OllamaBackend string                `json:"ollama_backend"`
	Timestamp     time.Time             `json:"timestamp"`
	Version       string                `json:"version,omitempty"`
	UptimeSeconds int64                 `json:"uptime_seconds,omitempty"`
	Backends      []admin.BackendReport `json:"backends,omitempty"`
	Queue         *sched.Snapshot       `json:"queue,omitempty"`
	Journal       *books.Depth          `json:"journal,omitempty"`
	Retention     *store.TrimWait       `json:"retention_waits,omitempty"`
	LogLinesLost  *int64                `json:"log_lines_lost,omitempty"`
	Hint          string                `json:"hint,omitempty"`
}

// health always answers 200: it is for people and dashboards. Only admins see the details.
func (s *Server) health(x *exchange) error {
	report := healthReport{Status: "healthy", OllamaBackend: "healthy", Timestamp: time.Now().UTC()}
	switch healthy := s.Fleet.Healthy(); {
	case healthy == 0:
		report.Status, report.OllamaBackend = "degraded", "unreachable"
	case healthy < len(s.Fleet.All()):
		report.Status = "degraded"
	}
	journal := s.Books.Depth()
	if journal.JournalError != "" || journal.StoreError != "" || journal.FullSince != nil {
		report.Status = "degraded"
	}
	if x.key != nil && x.key.Role == api.RoleAdmin {
		report.Version = s.Version
		report.UptimeSeconds = int64(time.Since(s.started).Seconds())
		report.Backends = s.admin.Backends()
		queue := s.Sched.Snapshot()
		report.Queue, report.Journal, report.Hint, report.Retention = &queue, &journal, journal.Hint, s.Store.TrimWaits()
		lost := s.logLinesLost()
		report.LogLinesLost = &lost
	}
	return x.sendJSON(report)
}

func (s *Server) logLinesLost() int64 {
	if s.LogLinesLost == nil {
		return 0
	}
	return s.LogLinesLost()
}

// alive reports only that the process runs: a restart would not repair a backend.
func (s *Server) alive(x *exchange) error { return x.sendJSON(map[string]string{"status": "ok"}) }

// readiness answers 200 if the gateway can serve requests, and 503 otherwise.
func (s *Server) readiness(x *exchange) error {
	if !s.ready.Load() {
		return api.Errorf(api.CodeStopping, "the gateway is stopping")
	}
	if s.Fleet.Healthy() == 0 {
		return api.Errorf(api.CodeNoBackend, "the Ollama server cannot be reached")
	}
	return x.sendJSON(map[string]string{"status": "ready"})
}
