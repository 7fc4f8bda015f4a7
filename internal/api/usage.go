package api

import "time"

// Admission is what is journalled before a counted request goes upstream. With its Record missing at start-up it becomes
// a row of its own with status "interrupted".
type Admission struct {
	ID              string    `json:"id"` // ours, never a client's
	ClientRequestID string    `json:"cid,omitempty"`
	At              time.Time `json:"at"`
	Key             string    `json:"key"` // preview
	Model           string    `json:"model,omitempty"`
	Alias           string    `json:"alias,omitempty"`
	Endpoint        string    `json:"ep"` // route template
	Backend         string    `json:"be,omitempty"`
	Class           string    `json:"class"`
	Streamed        bool      `json:"st,omitempty"`
	ClientAddr      string    `json:"addr,omitempty"`
	PromptEstimate  int64     `json:"pe,omitempty"` // tokens
}

// Outcome says how a counted request ended.
type Outcome string

// The outcomes. All but OutcomeOK and OutcomeRefused are failures of the service or of the connection.
const (
	OutcomeOK          Outcome = "ok"             // the whole answer went out
	OutcomeRefused     Outcome = "refused"        // Ollama answered with a 4xx, passed on
	OutcomeUpstream    Outcome = "upstream_error" // Ollama failed or died
	OutcomeTimeout     Outcome = "timeout"
	OutcomeClientGone  Outcome = "client_gone"
	OutcomeInterrupted Outcome = "interrupted" // the gateway was killed
)

// Record is one row of the books: what one counted request used and how it ended.
type Record struct {
	Admission
	Outcome          Outcome `json:"out"`
	Status           int     `json:"status"` // HTTP status the client was sent; 0 when nothing was
	ErrorCode        Code    `json:"err,omitempty"`
	PromptTokens     int64   `json:"pt"`
	CompletionTokens int64   `json:"ct"`
	// Estimated is true where the tokens were counted from what passed and not read from Ollama's terminal record.
	Estimated bool          `json:"est,omitempty"`
	FirstByte time.Duration `json:"ttfb"` // from arrival to the first byte of the answer; 0 when there was none
	Total     time.Duration `json:"total"`
	Slot      time.Duration `json:"slot"` // lease taken to lease returned
	// Ollama's own durations; nil where the dialect gives none (all of /v1).
	OllamaTotal      *time.Duration `json:"ot,omitempty"`
	OllamaLoad       *time.Duration `json:"ol,omitempty"`
	OllamaPromptEval *time.Duration `json:"op,omitempty"`
	OllamaEval       *time.Duration `json:"oe,omitempty"`
	BytesIn          int64          `json:"bi"`
	BytesOut         int64          `json:"bo"`
}

// Tally is a per-minute counter of what makes no row: refusals and metadata requests. A flood of them must not fill the disk.
type Tally struct {
	Minute time.Time // start of the minute
	Who    string    // key preview, or client address where no key was known
	What   string    // a Code for a refusal, "metadata" for an answered metadata request
	Count  int64
}

// Statistics is what the books say of one key, or of all.
type Statistics struct {
	TotalRequests    int64            `json:"total_requests"`
	ByModel          map[string]int64 `json:"requests_by_model"`
	ByEndpoint       map[string]int64 `json:"requests_by_endpoint"`
	ByOutcome        map[string]int64 `json:"requests_by_outcome"`
	AverageSeconds   float64          `json:"average_response_time" doc:"Seconds"`
	Percentiles      Percentiles      `json:"response_time_percentiles"`
	Last24h          int64            `json:"last_24h_requests"`
	PromptTokens     int64            `json:"prompt_tokens"`
	CompletionTokens int64            `json:"completion_tokens"`
	EstimatedRows    int64            `json:"estimated_requests" doc:"Requests whose tokens were counted from what passed"`
	SlotMS           float64          `json:"slot_ms" doc:"Milliseconds for which slots of the backends were held"`
	LastRequest      *time.Time       `json:"last_request"`
}

// Percentiles of the response time in seconds, from log buckets: at most 5 % off.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}
