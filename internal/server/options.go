package server

import (
	"crypto/tls"
	"time"

	"go.opentelemetry.io/otel/trace"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/sched"
)

// Options are the packages and the settings that the server uses. Where a field does not say what its zero value means, it must be set.
type Options struct {
	admin.Parts
	Queue sched.Options // its Load is the server's own
	Live  Live          // at start; Change replaces it

	Upstream
	Bounds
	Access
	Reports
}

// Upstream is how the server uses the Ollama servers.
type Upstream struct {
	FirstByte  time.Duration // longest wait for an answer
	Idle       time.Duration // longest silence within one
	CountGrace time.Duration // how long an answer is read on after its client has left, so that its tokens are counted; 0 is not at all
	// TraceUpstream tells the Ollama server, or what is in front of it, about the trace of a request.
	TraceUpstream bool
}

// Bounds are what requests may take.
type Bounds struct {
	MaxBody        int64 // bytes of one body
	BodyMemory     int64 // bytes of the large bodies of all requests together
	MaxRequestTime time.Duration
	Heartbeat      time.Duration // between heartbeats in a silent stream of events; 0 is none
	PerAddress     int           // concurrent connections of one address; 0 is no bound
	StopDelay      time.Duration // how long connections are accepted after /readyz has begun to answer 503
}

// Access is how clients reach the server. The zero value is plain HTTP at the root.
type Access struct {
	BasePath      string // under which the service is published, like /ollama
	ProxyProtocol bool   // each connection begins with a header of a trusted proxy
	Throttle      *auth.Throttle
	MetricsOpen   bool          // /metrics needs no key from this machine
	TLS           *tls.Config   // nil is plain HTTP, without HTTP/2
	HSTS          time.Duration // how long browsers use only HTTPS; 0, or without TLS, sends no header
	// Expiry is when the certificate of each name ends; nil without TLS.
	Expiry func() map[string]time.Time
}

// Reports is what the server says about itself and its requests. The zero value says least.
type Reports struct {
	Tracer     trace.Tracer      // makes the spans of requests; nil traces nothing
	LogAddress api.AddressDetail // how much of a client's address the log and traces show
	// LogLinesLost is the number of lines of the log that were lost, because its reader did not take them; nil is none.
	LogLinesLost func() int64
	// LastBackup is when the newest good scheduled backup was made; zero is never. BackupEvery is how often one is due; 0 is never.
	LastBackup  func() time.Time
	BackupEvery time.Duration
}
