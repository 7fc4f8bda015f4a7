package api

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// UnknownModel is the name in the books of every model that no server has. It is no model's name: clients can make up any of those.
const UnknownModel = "(unknown)"

// Admission is what is journalled before a counted request goes upstream. With its Record missing at start-up it becomes
// a row of its own with status "interrupted".
type Admission struct {
	ID              string    `json:"id"` // ours, never a client's
	ClientRequestID string    `json:"cid,omitempty"`
	At              time.Time `json:"at"`
	Key             string    `json:"key"` // preview
	Model           string    `json:"model,omitempty"`
	Alias           string    `json:"alias,omitempty"` // the name that was asked for, where Model is another one
	Endpoint        string    `json:"ep"`              // route template
	Backend         string    `json:"be,omitempty"`
	Class           string    `json:"class"`
	Streamed        bool      `json:"st,omitempty"`
	ClientAddr      string    `json:"addr,omitempty"`
	PromptEstimate  int64     `json:"pe,omitempty"` // tokens
	OutputEstimate  int64     `json:"oe,omitempty"` // tokens that were held for the answer; 0 where its key has no limit of them
}

// Outcome says how a counted request ended.
type Outcome string

// The outcomes. All but OutcomeOK, OutcomeRefused and OutcomeCut are failures of the service or of the connection.
const (
	OutcomeOK          Outcome = "ok"             // the whole answer went out
	OutcomeRefused     Outcome = "refused"        // Ollama answered with a 4xx, passed on
	OutcomeUpstream    Outcome = "upstream_error" // Ollama failed or died
	OutcomeTimeout     Outcome = "timeout"
	OutcomeClientGone  Outcome = "client_gone"
	OutcomeCut         Outcome = "cut_by_limit" // the key had used up its tokens or its time in the middle of the answer
	OutcomeInterrupted Outcome = "interrupted"  // the gateway was killed
)

// Outcomes are all of them.
var Outcomes = []Outcome{OutcomeOK, OutcomeRefused, OutcomeUpstream, OutcomeTimeout, OutcomeClientGone, OutcomeCut, OutcomeInterrupted}

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
	// GPU is the part of the backend's time that the lease had, where that is divided among all in flight; negative where nobody
	// measured it. The parts of a backend never add up to more than the time that passed.
	GPU time.Duration `json:"gpu"`
	// Queued is how long it waited for its turn, and Loading how long its model was loaded because of it, which is not among Slot's
	// time if it had left by then; negative where nobody measured it.
	Queued  time.Duration `json:"queue"`
	Loading time.Duration `json:"load"`
	// Reserved and ReservedGPU are the tokens that were held for a request whose end nobody saw, and the time it can have had: they
	// count against its key's limits in the place of what nobody counted. 0 for others.
	Reserved    int64         `json:"reserved,omitempty"`
	ReservedGPU time.Duration `json:"reserved_gpu,omitempty"`
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
	GPUMS            float64          `json:"gpu_ms" doc:"Milliseconds of the backends' time, where that is divided among all requests that run at one time"`
	QueueMS          float64          `json:"queue_ms" doc:"Milliseconds for which requests waited for their turns"`
	LastRequest      *time.Time       `json:"last_request"`
}

// Percentiles of the response time in seconds, from log buckets: at most 5 % off.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// Usage is what a group of booked requests used.
type Usage struct {
	Requests         int64      `json:"requests"`
	PromptTokens     int64      `json:"prompt_tokens"`
	CompletionTokens int64      `json:"completion_tokens"`
	Estimated        int64      `json:"estimated_requests" doc:"Requests whose tokens were counted from what passed"`
	SlotMS           float64    `json:"slot_ms" doc:"Milliseconds for which slots of the backends were held"`
	GPUMS            float64    `json:"gpu_ms" doc:"Milliseconds of the backends' time, where that is divided among all requests that run at one time"`
	QueueMS          float64    `json:"queue_ms" doc:"Milliseconds for which requests waited for their turns"`
	AverageSeconds   *float64   `json:"average_response_time" doc:"Seconds; null where no duration is known"`
	AverageFirstByte *float64   `json:"average_time_to_first_byte" doc:"Seconds; null where no answer began"`
	BytesIn          int64      `json:"bytes_in"`
	BytesOut         int64      `json:"bytes_out"`
	LastRequest      *time.Time `json:"last_request" doc:"When the latest of them was admitted; null where there is none"`
}

// UsageGroup is Usage of what agrees in those fields that are set; the others were not asked for.
type UsageGroup struct {
	Start    *time.Time `json:"start,omitempty" doc:"Start of the hour or day, in the zone asked for"`
	Key      *string    `json:"key,omitempty" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyName  string     `json:"key_name,omitempty" example:"Production API Key"`
	Revoked  bool       `json:"revoked,omitempty" doc:"The key was revoked"`
	Model    *string    `json:"model,omitempty" doc:"Empty for requests about no model, such as uploads of blobs" example:"llama3.2:latest"`
	Endpoint *string    `json:"endpoint,omitempty" example:"/api/chat"`
	Backend  *string    `json:"backend,omitempty" example:"ollama"`
	Outcome  *string    `json:"outcome,omitempty" example:"ok"`
	Usage
}

// Dimension is what usage can be grouped by.
type Dimension string

// The dimensions. Hours are those of UTC, days those of the zone that was asked for.
const (
	ByKey      Dimension = "key"
	ByModel    Dimension = "model"
	ByEndpoint Dimension = "endpoint"
	ByBackend  Dimension = "backend"
	ByOutcome  Dimension = "outcome"
	ByHour     Dimension = "hour"
	ByDay      Dimension = "day"
	ByWeek     Dimension = "week" // from Monday on, as ISO 8601 has it
	ByMonth    Dimension = "month"
)

// RequestFilter chooses booked requests: of any of the values of each field; an empty field is all.
type RequestFilter struct {
	Keys, Models, Endpoints, Backends, Outcomes []string
	From                                        time.Time // included; zero is the beginning
	To                                          time.Time // not included; zero is no end
}

// Times are the dimensions of time, the shortest first.
var Times = []Dimension{ByHour, ByDay, ByWeek, ByMonth}

// IsTime reports whether d is one of Times.
func (d Dimension) IsTime() bool { return slices.Contains(Times, d) }

// Begin is the start of the hour, day, week or month that t is in, in t's own zone. An hour is a whole one of UTC.
func (d Dimension) Begin(t time.Time) time.Time { return d.begin(t, 0) }

// Next is the start of the hour, day, week or month after the one that t is in.
func (d Dimension) Next(t time.Time) time.Time { return d.begin(t, 1) }

func (d Dimension) begin(t time.Time, further int) time.Time {
	year, month, day := t.Date()
	switch d {
	case ByHour:
		return t.Truncate(time.Hour).Add(time.Duration(further) * time.Hour)
	case ByWeek:
		day += 7*further - int(t.Weekday()+6)%7
	case ByMonth:
		month, day = month+time.Month(further), 1
	default:
		day += further
	}
	return Midnight(year, month, day, t.Location())
}

// mostOffset is more than any zone is from UTC.
const mostOffset = 26 * time.Hour

// Midnight is the first instant of a date in a zone. time.Date gives an hour of the day before where clocks go forward at midnight, and may
// give the second midnight where they go back to it. A date that a zone leaves out begins with the next one.
func Midnight(year int, month time.Month, day int, zone *time.Location) time.Time {
	date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	earliest := date.Add(-mostOffset)
	seconds := sort.Search(int(2*mostOffset/time.Second), func(n int) bool {
		y, m, d := earliest.Add(time.Duration(n) * time.Second).In(zone).Date()
		return !time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Before(date)
	})
	return earliest.Add(time.Duration(seconds) * time.Second).In(zone)
}

// ParseTime reads a time (RFC 3339), or a plain day as its begin in zone.
func ParseTime(text string, zone *time.Location) (t time.Time, day bool, err error) {
	if t, err = time.Parse(time.DateOnly, text); err == nil {
		return Midnight(t.Year(), t.Month(), t.Day(), zone), true, nil
	}
	t, err = time.Parse(time.RFC3339, text)
	return t.In(zone), false, err
}

// ParseZone reads the name of a zone of time (Europe/Berlin) or a distance from UTC (+05:30). An empty text is UTC.
func ParseZone(text string) (*time.Location, error) {
	if text == "" {
		return time.UTC, nil
	}
	if at, err := time.Parse("-07:00", text); err == nil {
		_, offset := at.Zone()
		return time.FixedZone(text, offset), nil
	}
	zone, err := time.LoadLocation(text)
	// Local would be what the machine of the service is set to, which nobody who asks can know.
	if err != nil || strings.EqualFold(text, "local") {
		return nil, Errorf(CodeBadRequest, "tz is no zone of time: give a name like Europe/Berlin or a distance from UTC like +05:30, or leave it out for UTC")
	}
	if zone.String() == "UTC" {
		return time.UTC, nil
	}
	return zone, nil
}
