package api

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// UnknownModel replaces, in usage records, the names of models that no server has. It is not a valid model name, because clients can make
// up any valid one.
const UnknownModel = "(unknown)"

// Admission is journalled before a counted request goes upstream. If its Record is missing at the next start, it becomes a row with the
// outcome "interrupted".
type Admission struct {
	ID              string // from the gateway, never from a client
	ClientRequestID string
	At              time.Time
	Key             string // preview
	Model           string
	Alias           string // the requested name if it is not Model
	Endpoint        string // route template
	Backend         string
	Class           string
	Streamed        bool
	ClientAddr      string
	Client          string // from ClientOf
	PromptEstimate  int64  // tokens
	OutputEstimate  int64  // tokens reserved for the answer; 0 if the key has no token limit
}

// Record is one usage row: what one counted request used and how it ended.
type Record struct {
	Admission
	KeyLabel         // set where rows are shown
	Outcome          Outcome
	Status           int // HTTP status sent to the client; 0 if none
	ErrorCode        Code
	PromptTokens     int64
	CompletionTokens int64
	// Estimated reports that the tokens were counted from the stream and not read from Ollama's last record.
	Estimated bool
	FirstByte time.Duration // from arrival to the first byte of the answer; 0 without an answer
	Total     time.Duration
	Slot      time.Duration // how long the lease was held
	// GPU is the lease's part of the backend's time, which is divided among all requests in flight. It is negative if it was not
	// measured. The parts never add up to more than the elapsed time.
	GPU time.Duration
	// Queued is how long the request waited for a slot. Loading is how long its model was loaded because of it; if the request left
	// earlier, Slot does not include that time. Both are negative if they were not measured.
	Queued  time.Duration
	Loading time.Duration
	// Reserved and ReservedGPU are the reserved tokens and the longest possible time of a request whose end was not recorded. They count
	// against the key's limits instead of real figures. They are 0 for other requests.
	Reserved    int64
	ReservedGPU time.Duration
	// Ollama's own durations; nil if the dialect reports none (all of /v1).
	OllamaTotal      *time.Duration
	OllamaLoad       *time.Duration
	OllamaPromptEval *time.Duration
	OllamaEval       *time.Duration
	BytesIn          int64
	BytesOut         int64
}

// Columns are the columns of a usage row, in the order of CSV tables: new ones come last, so that the others keep their positions. How a
// value is stored, journalled and shown follows from the type of its field and from its line here.
var Columns = []*Column{
	{
		Name: "id", At: func(r *Record) any { return &r.ID }, Doc: "The X-Request-Id of the answer",
		Example: "019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90",
	},
	{
		Name: "client_request_id", At: func(r *Record) any { return &r.ClientRequestID },
		Doc: "The X-Request-Id that the client sent; empty without one",
	},
	{Name: "at", At: func(r *Record) any { return &r.At }, Doc: "When the request was admitted"},
	{
		Name: "key", At: func(r *Record) any { return &r.Key }, Doc: "Key preview", Example: "oas_8rT2kLmN0q",
		Group: func(g *UsageGroup) **string { return &g.Key }, Filter: func(f *RequestFilter) *[]string { return &f.Keys },
	},
	{Name: "key_name", At: func(r *Record) any { return &r.KeyName }, Derived: true, Example: "Production API Key"},
	{
		Name: "model", At: func(r *Record) any { return &r.Model }, Example: "llama3.2:latest",
		Doc:   "The model that ran; empty if there is none, (unknown) for a name that no server has",
		Group: func(g *UsageGroup) **string { return &g.Model }, Filter: func(f *RequestFilter) *[]string { return &f.Models },
	},
	{
		Name: "alias", At: func(r *Record) any { return &r.Alias },
		Doc: "The name that the client used, if it is an alias or a name that no server has",
	},
	{
		Name: "endpoint", At: func(r *Record) any { return &r.Endpoint }, Doc: "Route template", Example: "/api/chat",
		Group: func(g *UsageGroup) **string { return &g.Endpoint }, Filter: func(f *RequestFilter) *[]string { return &f.Endpoints },
	},
	{Name: "class", At: func(r *Record) any { return &r.Class }, Enum: []string{"inference", "management"}},
	{
		Name: "backend", At: func(r *Record) any { return &r.Backend }, Example: "ollama",
		Group: func(g *UsageGroup) **string { return &g.Backend }, Filter: func(f *RequestFilter) *[]string { return &f.Backends },
	},
	{
		Name: "outcome", At: func(r *Record) any { return (*string)(&r.Outcome) },
		Enum:  []string{"ok", "refused", "upstream_error", "timeout", "client_gone", "cut_by_limit", "interrupted"},
		Group: func(g *UsageGroup) **string { return &g.Outcome }, Filter: func(f *RequestFilter) *[]string { return &f.Outcomes },
	},
	{Name: "status", At: func(r *Record) any { return &r.Status }, Doc: "HTTP status sent to the client; 0 if none was sent", Example: "200"},
	{Name: "error_code", At: func(r *Record) any { return (*string)(&r.ErrorCode) }, Doc: "Why it failed; empty if it did not"},
	{Name: "streamed", At: func(r *Record) any { return &r.Streamed }},
	{Name: "prompt_tokens", At: func(r *Record) any { return &r.PromptTokens }, Sum: true},
	{Name: "completion_tokens", At: func(r *Record) any { return &r.CompletionTokens }, Sum: true},
	{
		Name: "estimated", At: func(r *Record) any { return &r.Estimated }, Sum: true,
		Doc: "Whether the tokens are an estimate from the bytes that passed",
	},
	{
		Name: "ttfb_ms", At: func(r *Record) any { return &r.FirstByte }, None: NoneZero, Sum: true,
		Doc: "From arrival to the first byte of the answer; null if none came",
	},
	{
		Name: "total_ms", At: func(r *Record) any { return &r.Total }, None: NoneZero, StoreNone: true, Sum: true,
		Doc: "From arrival to the end; null if it is not known, after a crash",
	},
	{Name: "slot_ms", At: func(r *Record) any { return &r.Slot }, Sum: true, Doc: "How long it held a slot of the backend"},
	{
		Name: "ollama_total_ns", At: func(r *Record) any { return &r.OllamaTotal },
		Doc: "Ollama's own durations; null if its answer has none, as on all of /v1",
	},
	{Name: "ollama_load_ns", At: func(r *Record) any { return &r.OllamaLoad }},
	{Name: "ollama_prompt_eval_ns", At: func(r *Record) any { return &r.OllamaPromptEval }},
	{Name: "ollama_eval_ns", At: func(r *Record) any { return &r.OllamaEval }},
	{Name: "bytes_in", At: func(r *Record) any { return &r.BytesIn }, Sum: true},
	{Name: "bytes_out", At: func(r *Record) any { return &r.BytesOut }, Sum: true},
	{Name: "client_addr", At: func(r *Record) any { return &r.ClientAddr }, Example: "10.0.0.7"},
	{
		Name: "gpu_ms", At: func(r *Record) any { return &r.GPU }, None: NoneNegative, Sum: true,
		Doc: "Its share of the backend's time: requests that run at the same time share that time. Includes loads that its key caused. " +
			"Null if it was not measured",
	},
	{
		Name: "load_ms", At: func(r *Record) any { return &r.OllamaLoad }, Derived: true,
		Doc: "How long Ollama took to get the model ready: milliseconds if it was loaded, seconds if the request made Ollama load it; " +
			"null if the answer does not report it, as on all of /v1",
	},
	{
		Name: "reserved_tokens", At: func(r *Record) any { return &r.Reserved }, None: NoneZero,
		Doc: "Tokens that were reserved for a request whose end was not recorded: they count against its key's limits; 0 for all other requests",
	},
	{Name: "reserved_gpu_ms", At: func(r *Record) any { return &r.ReservedGPU }, None: NoneZero, Hidden: true},
	{
		Name: "queue_ms", At: func(r *Record) any { return &r.Queued }, None: NoneNegative, Sum: true,
		Doc: "How long it waited for a slot; null if it was not measured",
	},
	{
		Name: "loading_ms", At: func(r *Record) any { return &r.Loading }, None: NoneNegative,
		Doc: "How long its model was loaded because of it before it ran, also if Ollama loaded it on its own; null if it was not measured",
	},
	{Name: "key_owner", At: func(r *Record) any { return &r.KeyOwner }, Derived: true, Example: "Sales team"},
	{
		Name: "client", At: func(r *Record) any { return &r.Client }, Example: "claude-code",
		Doc: "The calling program by its User-Agent: claude-code, codex, openai-python, ollama-cli, curl and some dozens more, or other; " +
			"empty in rows of earlier versions",
		Group: func(g *UsageGroup) **string { return &g.Client }, Filter: func(f *RequestFilter) *[]string { return &f.Clients },
	},
}

// Tally counts, by the minute, requests that get no row: refusals and metadata requests. A flood of them must not fill the disk.
type Tally struct {
	Minute time.Time // start of the minute
	Who    string    // key preview, or client address without a valid key
	What   string    // a Code for a refusal, "metadata" for an answered metadata request
	Count  int64
}

// Statistics summarizes the usage of one key, or of all.
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
	EstimatedRows    int64            `json:"estimated_requests" doc:"Requests whose tokens were estimated"`
	SlotMS           float64          `json:"slot_ms" doc:"Milliseconds for which requests held slots"`
	GPUMS            float64          `json:"gpu_ms" doc:"Milliseconds of backend time, which is divided among concurrent requests"`
	QueueMS          float64          `json:"queue_ms" doc:"Milliseconds for which requests waited for slots"`
	LastRequest      *time.Time       `json:"last_request"`
}

// Percentiles of the response time in seconds, from logarithmic buckets: within 5 %.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// Usage is what a group of requests used.
type Usage struct {
	Requests         int64      `json:"requests"`
	PromptTokens     int64      `json:"prompt_tokens"`
	CompletionTokens int64      `json:"completion_tokens"`
	Estimated        int64      `json:"estimated_requests" doc:"Requests whose tokens were estimated"`
	SlotMS           float64    `json:"slot_ms" doc:"Milliseconds for which requests held slots"`
	GPUMS            float64    `json:"gpu_ms" doc:"Milliseconds of backend time, which is divided among concurrent requests"`
	QueueMS          float64    `json:"queue_ms" doc:"Milliseconds for which requests waited for slots"`
	AverageSeconds   *float64   `json:"average_response_time" doc:"Seconds; null if no duration is known"`
	AverageFirstByte *float64   `json:"average_time_to_first_byte" doc:"Seconds; null without any answer"`
	BytesIn          int64      `json:"bytes_in"`
	BytesOut         int64      `json:"bytes_out"`
	LastRequest      *time.Time `json:"last_request" doc:"When the latest request was admitted; null without requests"`
}

// UsageGroup is the Usage of requests that have the same values in the fields that are set. The other fields were not requested.
type UsageGroup struct {
	Start *time.Time `json:"start,omitempty" doc:"Start of the hour, day, week or month, in the requested zone"`
	Key   *string    `json:"key,omitempty" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyLabel
	Revoked  bool    `json:"revoked,omitempty" doc:"The key was revoked"`
	Model    *string `json:"model,omitempty" doc:"Empty for requests without a model, such as uploads of blobs" example:"llama3.2:latest"`
	Endpoint *string `json:"endpoint,omitempty" example:"/api/chat"`
	Backend  *string `json:"backend,omitempty" example:"ollama"`
	Outcome  *string `json:"outcome,omitempty" example:"ok"`
	Client   *string `json:"client,omitempty" doc:"The calling program by its User-Agent; empty for requests of earlier versions" example:"claude-code"`
	Usage
}

// Dimension is a field that usage can be grouped by.
type Dimension string

// The dimensions. Hours are UTC hours; days, weeks and months are those of the requested zone.
const (
	ByKey      Dimension = "key"
	ByModel    Dimension = "model"
	ByEndpoint Dimension = "endpoint"
	ByBackend  Dimension = "backend"
	ByOutcome  Dimension = "outcome"
	ByClient   Dimension = "client"
	ByHour     Dimension = "hour"
	ByDay      Dimension = "day"
	ByWeek     Dimension = "week" // starts on Monday (ISO 8601)
	ByMonth    Dimension = "month"
)

// RequestFilter selects requests that match any of the values of each field. An empty field matches all.
type RequestFilter struct {
	Keys, Models, Endpoints, Backends, Outcomes, Clients []string
	From                                                 time.Time // inclusive; zero means unbounded
	To                                                   time.Time // exclusive; zero means unbounded
}

// Times are the dimensions of time, shortest first.
var Times = []Dimension{ByHour, ByDay, ByWeek, ByMonth}

// IsTime reports whether d is one of Times.
func (d Dimension) IsTime() bool { return slices.Contains(Times, d) }

// Begin returns the start of the hour, day, week or month of t, in t's own zone. Hours are whole UTC hours.
func (d Dimension) Begin(t time.Time) time.Time { return d.begin(t, 0) }

// Next returns the start of the hour, day, week or month after the one of t.
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

// mostOffset is larger than the offset of any zone from UTC.
const mostOffset = 26 * time.Hour

// Midnight returns the first instant of a date in a zone. time.Date returns an hour of the previous day where clocks go forward at
// midnight, and may return the second midnight where they go back to it. A date that a zone skips begins with the next one.
func Midnight(year int, month time.Month, day int, zone *time.Location) time.Time {
	date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	earliest := date.Add(-mostOffset)
	seconds := sort.Search(int(2*mostOffset/time.Second), func(n int) bool {
		y, m, d := earliest.Add(time.Duration(n) * time.Second).In(zone).Date()
		return !time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Before(date)
	})
	return earliest.Add(time.Duration(seconds) * time.Second).In(zone)
}

// ParseTime reads a time (RFC 3339), or a date as its start in zone.
func ParseTime(text string, zone *time.Location) (t time.Time, day bool, err error) {
	if t, err = time.Parse(time.DateOnly, text); err == nil {
		return Midnight(t.Year(), t.Month(), t.Day(), zone), true, nil
	}
	t, err = time.Parse(time.RFC3339, text)
	return t.In(zone), false, err
}

// ParseZone reads the name of a time zone (Europe/Berlin) or an offset from UTC (+05:30). An empty text is UTC.
func ParseZone(text string) (*time.Location, error) {
	if text == "" {
		return time.UTC, nil
	}
	if at, err := time.Parse("-07:00", text); err == nil {
		_, offset := at.Zone()
		return time.FixedZone(text, offset), nil
	}
	zone, err := time.LoadLocation(text)
	// Local would be the zone of the service's machine, which clients do not know.
	if err != nil || strings.EqualFold(text, "local") {
		return nil, Errorf(CodeBadRequest, "tz is not a time zone: give a name like Europe/Berlin or an offset from UTC like +05:30, or leave it out for UTC")
	}
	if zone.String() == "UTC" {
		return time.UTC, nil
	}
	return zone, nil
}

// Milliseconds is d in milliseconds, in whole microseconds, as answers and logs show it.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// FromMilliseconds returns a duration that is stored as milliseconds, and is not negative.
func FromMilliseconds(ms float64) time.Duration {
	return time.Duration(ms*float64(time.Millisecond) + 0.5)
}

// Measured is d in milliseconds, or nil for a negative d, which was not measured.
func Measured(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	ms := Milliseconds(d)
	return &ms
}
