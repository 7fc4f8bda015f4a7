package admin

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/store"
)

const (
	usageDays    = 30                  // what usage shows unless a span is given, today included
	longestHours = 92 * 24 * time.Hour // the longest span that is shown by hour
)

// Chosen are the filters that both answers know. A list is separated by commas and chooses any of its values. (huma looks into no
// embedded struct whose name is not exported.)
type Chosen struct {
	Span
	Key      []string `query:"key" maxItems:"100" doc:"Key previews, separated by commas" example:"[\"oas_8rT2kLmN0q\"]"`
	Model    []string `query:"model" maxItems:"100" doc:"Models, separated by commas; llama3.2 is llama3.2:latest, and (unknown) are those that no server has" example:"[\"llama3.2:latest\"]"`
	Endpoint []string `query:"endpoint" maxItems:"100" doc:"Route templates, separated by commas" example:"[\"/api/chat\"]"`
	Backend  []string `query:"backend" maxItems:"100" doc:"Names of Ollama servers, separated by commas" example:"[\"ollama\"]"`
	Outcome  []string `query:"outcome" maxItems:"100" enum:"ok,refused,upstream_error,timeout,client_gone,cut_by_limit,interrupted" doc:"How requests ended, separated by commas" example:"[\"ok\"]"`
	Format   string   `query:"format" enum:"json,csv" doc:"csv is a table for spreadsheets, and so is Accept: text/csv"`
}

// filter is what was asked for in the words of the books.
func (c *Chosen) filter() (f api.RequestFilter, zone *time.Location, err error) {
	f = api.RequestFilter{Keys: c.Key, Endpoints: c.Endpoint, Backends: c.Backend, Outcomes: c.Outcome}
	if f.From, f.To, zone, err = c.read(); err != nil {
		return f, nil, err
	}
	for _, text := range c.Model {
		if text == api.UnknownModel {
			f.Models = append(f.Models, text)
			continue
		}
		m, _, err := api.ParseModel(text)
		if err != nil {
			return f, nil, err
		}
		f.Models = append(f.Models, m.String())
	}
	return f, zone, nil
}

func (c *Chosen) csv(ctx context.Context) bool { return wantsCSV(ctx, c.Format) }

func wantsCSV(ctx context.Context, format string) bool {
	return format == "csv" || format == "" && callerOf(ctx).CSV
}

type usageIn struct {
	Chosen
	GroupBy []api.Dimension `query:"group_by" enum:"key,model,endpoint,backend,outcome,hour,day,week,month" default:"day" minItems:"1" maxItems:"7" doc:"What to group by: one or several, separated by commas, of which at most one is hour (of UTC), day, week (from Monday on) or month (of tz). By hour, a span has at most 92 days" example:"[\"key\",\"day\"]"`
	Limit   int             `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"The most groups to show; the total counts all"`
}

type usageBody struct {
	From      time.Time        `json:"from" doc:"What was asked for. Where it cuts an hour or a day of which only the sum is kept, the begin of that"`
	To        time.Time        `json:"to"`
	GroupBy   []api.Dimension  `json:"group_by"`
	Usage     []api.UsageGroup `json:"usage" doc:"The earliest first, and of one time those with the most requests first; groups without a request are left out"`
	Groups    int64            `json:"groups" doc:"How many groups there are"`
	Truncated bool             `json:"truncated" doc:"Whether limit left groups out"`
	Total     api.Usage        `json:"total" doc:"Of all groups, also of those that limit left out"`
	asCSV     bool
}

type usageOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	Body        usageBody
}

type requestsIn struct {
	Chosen
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most requests to show"`
	Cursor string `query:"cursor" maxLength:"256" doc:"next_cursor of the page before, unchanged; the filters must be the same again"`
}

// requestRow is one row of the books. It has no prompt and no answer: the books hold none.
type requestRow struct {
	ID               string      `json:"id" doc:"The X-Request-Id of the answer" example:"019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"`
	ClientRequestID  string      `json:"client_request_id" doc:"The X-Request-Id that the client sent; empty if none"`
	At               time.Time   `json:"at" doc:"When the request was admitted"`
	Key              string      `json:"key" doc:"Key preview" example:"oas_8rT2kLmN0q"`
	KeyName          string      `json:"key_name,omitempty" example:"Production API Key"`
	Model            string      `json:"model" doc:"The model that ran; empty where there is none, and (unknown) for a name that no server has" example:"llama3.2:latest"`
	Alias            string      `json:"alias" doc:"The name the client used, where it is an alias or a model that no server has"`
	Endpoint         string      `json:"endpoint" doc:"Route template" example:"/api/chat"`
	Class            string      `json:"class" enum:"inference,management"`
	Backend          string      `json:"backend" example:"ollama"`
	Outcome          api.Outcome `json:"outcome" enum:"ok,refused,upstream_error,timeout,client_gone,cut_by_limit,interrupted"`
	Status           int         `json:"status" doc:"HTTP status the client was sent; 0 when nothing was" example:"200"`
	ErrorCode        api.Code    `json:"error_code" doc:"Why it failed; empty if it did not"`
	Streamed         bool        `json:"streamed"`
	PromptTokens     int64       `json:"prompt_tokens"`
	CompletionTokens int64       `json:"completion_tokens"`
	Estimated        bool        `json:"estimated" doc:"The tokens were counted from what passed"`
	FirstByteMS      *float64    `json:"ttfb_ms" doc:"From arrival to the first byte of the answer; null if none came"`
	TotalMS          *float64    `json:"total_ms" doc:"From arrival to the end; null where nobody knows, after a crash"`
	SlotMS           float64     `json:"slot_ms" doc:"For how long it held a slot of the backend"`
	GPUMS            *float64    `json:"gpu_ms" doc:"Its part of the backend's time, where each instant is divided among the requests that run, and loads that its key has caused; null where it was not measured"`
	QueueMS          *float64    `json:"queue_ms" doc:"For how long it waited for its turn; null where nobody measured it"`
	LoadingMS        *float64    `json:"loading_ms" doc:"For how long its model was loaded because of it, before it ran, also if Ollama did so unasked; null where it was not measured"`
	LoadMS           *float64    `json:"load_ms" doc:"How long Ollama took to have the model ready: milliseconds for one that was loaded, seconds for a request that made it load; null where its answer does not say, as on all of /v1"`
	OllamaTotal      *int64      `json:"ollama_total_ns" doc:"Ollama's own durations; null where its answer has none, as on all of /v1"`
	OllamaLoad       *int64      `json:"ollama_load_ns"`
	OllamaPromptEval *int64      `json:"ollama_prompt_eval_ns"`
	OllamaEval       *int64      `json:"ollama_eval_ns"`
	BytesIn          int64       `json:"bytes_in"`
	BytesOut         int64       `json:"bytes_out"`
	ClientAddr       string      `json:"client_addr" example:"10.0.0.7"`
	Reserved         int64       `json:"reserved_tokens" doc:"Tokens that were held for a request whose end nobody saw: they count against its key's limits; 0 for all others"`
}

type requestsBody struct {
	Requests   []requestRow `json:"requests" doc:"The newest first"`
	NextCursor *string      `json:"next_cursor" doc:"cursor of the next page; null on the last"`
	asCSV      bool
}

type requestsOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	NextCursor  string `header:"X-Next-Cursor" doc:"next_cursor, also for CSV; absent on the last page"`
	Body        requestsBody
}

func (s *Service) usageOperations(a huma.API) {
	const spans = " The answer is exact to the millisecond where each request is still kept (RETENTION_ROWS): from belongs to the span, to does not. " +
		"In CSV, a text that a spreadsheet would take for a formula has an apostrophe in front."
	operation(a, huma.Operation{
		OperationID: "usage", Method: "GET", Path: "/api/admin/usage", Summary: "Usage by key, model, endpoint, backend, outcome, hour, day, week or month (admin)",
		Description: "What booked requests used: all that chose a model, and changes of models. Without from it starts 30 days before to, on a whole day; without to it ends now." + spans +
			" Before that there are only sums of hours and days, and those of RETENTION_ROLLUPS alone: ends of the span that cut one are moved to its ends, and from and to in the answer say so.",
		Tags: []string{"Statistics"}, Errors: []int{503}, Responses: tableResponse(usageExample, "day,requests,prompt_tokens,…\n2026-11-25T00:00:00Z,42,1234,…\n"),
	}, s.usage)
	operation(a, huma.Operation{
		OperationID: "requests", Method: "GET", Path: "/api/admin/requests", Summary: "Booked requests one by one (admin)",
		Description: "Each booked request with what it used and how it ended, the newest first; never what was asked or answered. Follow next_cursor for more: requests that come meanwhile move nothing. " +
			"A request is listed when it has ended, at the time it was admitted." + spans,
		Tags: []string{"Statistics"}, Errors: []int{503}, Responses: tableResponse(requestsExample, "id,client_request_id,at,key,key_name,model,…\n019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90,,2026-11-25T09:30:00Z,…\n"),
	}, s.listRequests)
}

// usage answers from rollups.
func (s *Service) usage(ctx context.Context, in *usageIn) (*usageOut, error) {
	filter, zone, err := in.filter()
	if err != nil {
		return nil, err
	}
	now := time.Now().In(zone)
	body := usageBody{From: filter.From.In(zone), To: filter.To.In(zone), GroupBy: in.GroupBy, asCSV: in.csv(ctx)}
	if filter.To.IsZero() {
		body.To = now
	}
	if filter.From.IsZero() {
		y, m, d := body.To.Date()
		body.From = api.Midnight(y, m, d+1-usageDays, zone)
	}
	filter.From = body.From
	newest, err := s.Store.Newest(ctx)
	if err != nil {
		return nil, err
	}
	if filter.To = body.To; !body.To.Before(now) && !newest.After(now) {
		filter.To = time.Time{} // nothing is booked for later, and whole days are quicker read
	}
	if !body.From.Before(body.To) {
		return nil, api.Errorf(api.CodeBadRequest, "from lies in the future: leave to out for everything up to now")
	}
	if err := checkGroups(in.GroupBy, body.To.Sub(body.From)); err != nil {
		return nil, err
	}
	s.settle(ctx)
	used, err := s.Store.Usage(ctx, store.UsageQuery{RequestFilter: filter, By: in.GroupBy, Limit: in.Limit, Zone: zone})
	if err != nil {
		return nil, err
	}
	names, err := s.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	body.From = used.From.In(zone)
	if !used.To.IsZero() {
		body.To = used.To.In(zone)
	}
	for i := range used.Rows {
		g := &used.Rows[i]
		if g.Start != nil {
			*g.Start = g.Start.In(zone)
		}
		if g.Key != nil {
			k := names[*g.Key]
			g.KeyName, g.Revoked = k.Name, k.RevokedAt != nil
		}
	}
	body.Usage, body.Groups, body.Total = append([]api.UsageGroup{}, used.Rows...), used.Groups, used.Total
	body.Truncated = int64(len(body.Usage)) < body.Groups
	return &usageOut{disposition(body.asCSV, "usage.csv"), body}, nil
}

func checkGroups(by []api.Dimension, span time.Duration) error {
	seen, times := map[api.Dimension]bool{}, 0
	for _, d := range by {
		if seen[d] {
			return api.Errorf(api.CodeBadRequest, "group_by names %s twice", d)
		}
		if seen[d] = true; d.IsTime() {
			times++
		}
	}
	if times > 1 {
		return api.Errorf(api.CodeBadRequest, "group_by takes one of hour, day, week and month")
	}
	if seen[api.ByHour] && span > longestHours {
		return api.Errorf(api.CodeBadRequest, "group_by=hour shows at most %d days: move from and to closer, or group by day", longestHours/(24*time.Hour))
	}
	return nil
}

// keyNames are the keys by preview.
func (s *Service) keyNames(ctx context.Context) (map[string]api.Key, error) {
	keys, err := s.Store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[string]api.Key, len(keys))
	for _, k := range append(keys, s.Auth.Statics()...) {
		names[k.Preview] = k
	}
	return names, nil
}

func (s *Service) listRequests(ctx context.Context, in *requestsIn) (*requestsOut, error) {
	filter, zone, err := in.filter()
	if err != nil {
		return nil, err
	}
	before, err := parseCursor(in.Cursor)
	if err != nil {
		return nil, err
	}
	s.settle(ctx)
	list, next, err := s.Store.Requests(ctx, store.RequestQuery{RequestFilter: filter, Before: before, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	names, err := s.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	out := &requestsOut{Body: requestsBody{Requests: make([]requestRow, 0, len(list)), asCSV: in.csv(ctx)}}
	for i := range list {
		list[i].At = list[i].At.In(zone)
		out.Body.Requests = append(out.Body.Requests, rowOf(&list[i], names[list[i].Key].Name))
	}
	if next != nil {
		out.NextCursor = cursor(*next)
		out.Body.NextCursor = &out.NextCursor
	}
	out.Disposition = disposition(out.Body.asCSV, "requests.csv")
	return out, nil
}

func rowOf(r *api.Record, keyName string) requestRow {
	return requestRow{
		ID: r.ID, ClientRequestID: r.ClientRequestID, At: r.At, Key: r.Key, KeyName: keyName, Model: r.Model, Alias: r.Alias, Endpoint: r.Endpoint,
		Class: r.Class, Backend: r.Backend, Outcome: r.Outcome, Status: r.Status, ErrorCode: r.ErrorCode, Streamed: r.Streamed,
		PromptTokens: r.PromptTokens, CompletionTokens: r.CompletionTokens, Estimated: r.Estimated,
		FirstByteMS: known(r.FirstByte), TotalMS: known(r.Total), SlotMS: api.Milliseconds(r.Slot), GPUMS: api.Measured(r.GPU), QueueMS: api.Measured(r.Queued), LoadingMS: api.Measured(r.Loading), LoadMS: load(r.OllamaLoad),
		OllamaTotal: nanoseconds(r.OllamaTotal), OllamaLoad: nanoseconds(r.OllamaLoad), OllamaPromptEval: nanoseconds(r.OllamaPromptEval),
		OllamaEval: nanoseconds(r.OllamaEval), BytesIn: r.BytesIn, BytesOut: r.BytesOut, ClientAddr: r.ClientAddr, Reserved: r.Reserved,
	}
}

// known is a duration in milliseconds; 0 is one that nobody knows.
func known(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	ms := api.Milliseconds(d)
	return &ms
}

func load(d *time.Duration) *float64 {
	if d == nil {
		return nil
	}
	return api.Measured(*d)
}

func nanoseconds(d *time.Duration) *int64 {
	if d == nil {
		return nil
	}
	n := d.Nanoseconds()
	return &n
}

// cursorMark begins every cursor, so that a later form of it can be told apart.
const cursorMark = "1."

func cursor(p store.Place) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s%d.%s", cursorMark, p.At, p.ID))
}

// parseCursor is the inverse of cursor. An empty text is the beginning.
func parseCursor(text string) (store.Place, error) {
	if text == "" {
		return store.Place{}, nil
	}
	plain, err := base64.RawURLEncoding.Strict().DecodeString(text)
	rest, ok := strings.CutPrefix(string(plain), cursorMark)
	at, id, _ := strings.Cut(rest, ".")
	ms, notNumber := strconv.ParseInt(at, 10, 64)
	if err != nil || !ok || notNumber != nil || ms < 0 || id == "" || !auth.ValidRequestID(id) {
		return store.Place{}, api.Errorf(api.CodeBadRequest, "cursor is not one: take next_cursor of the page before, or leave it out for the newest requests")
	}
	return store.Place{At: ms, ID: id}, nil
}
