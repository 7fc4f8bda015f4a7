package admin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/store"
)

const (
	usageDays    = 30                  // the number of days shown if no span is given, today included
	longestHours = 92 * 24 * time.Hour // the longest span shown by hour
)

// Chosen has the filters that both operations share. A list is separated by commas and matches any of its values. (The name is
// exported because huma ignores embedded structs whose name is not.)
type Chosen struct {
	Span
	Key      []string `query:"key" maxItems:"100" doc:"Key previews, separated by commas" example:"[\"oas_8rT2kLmN0q\"]"`
	Model    []string `query:"model" maxItems:"100" doc:"Models, separated by commas; llama3.2 is llama3.2:latest, and (unknown) are the names that no server has" example:"[\"llama3.2:latest\"]"`
	Endpoint []string `query:"endpoint" maxItems:"100" doc:"Route templates, separated by commas" example:"[\"/api/chat\"]"`
	Backend  []string `query:"backend" maxItems:"100" doc:"Names of Ollama servers, separated by commas" example:"[\"ollama\"]"`
	Outcome  []string `query:"outcome" maxItems:"100" enum:"ok,refused,upstream_error,timeout,client_gone,cut_by_limit,interrupted" doc:"How requests ended, separated by commas" example:"[\"ok\"]"`
	Client   []string `query:"client" maxItems:"100" doc:"Calling programs, separated by commas" example:"[\"claude-code\"]"`
	Format   string   `query:"format" enum:"json,csv" doc:"csv is a table for spreadsheets, and so is Accept: text/csv"`
}

// filter returns the chosen filters as the store takes them.
func (c *Chosen) filter() (f api.RequestFilter, zone *time.Location, err error) {
	f = api.RequestFilter{Keys: c.Key, Endpoints: c.Endpoint, Backends: c.Backend, Outcomes: c.Outcome, Clients: c.Client}
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

type usageIn struct {
	Chosen
	GroupBy []api.Dimension `query:"group_by" enum:"key,model,endpoint,backend,outcome,client,hour,day,week,month" default:"day" minItems:"1" maxItems:"8" doc:"What to group by: one or more, separated by commas. At most one of them is hour (UTC), day, week (from Monday) or month (these three in tz). With hour, the span has at most 92 days" example:"[\"key\",\"day\"]"`
	Limit   int             `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"The most groups to return; total covers all of them"`
}

type usageBody struct {
	From      time.Time        `json:"from" doc:"The start of the span. If the requested start is within an hour or a day of which only the sum is kept: the start of that hour or day"`
	To        time.Time        `json:"to"`
	GroupBy   []api.Dimension  `json:"group_by"`
	Usage     []api.UsageGroup `json:"usage" doc:"The earliest first; for the same time, the groups with the most requests first. Groups without requests are left out"`
	Groups    int64            `json:"groups" doc:"The number of groups"`
	Truncated bool             `json:"truncated" doc:"Whether limit left groups out"`
	Total     api.Usage        `json:"total" doc:"The total of all groups, including those that limit left out"`
	tabular
}

type usageOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	Body        usageBody
}

type requestsIn struct {
	Chosen
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most requests to return"`
	Cursor string `query:"cursor" maxLength:"256" doc:"next_cursor of the previous page, unchanged; send the same filters again"`
}

// requestRow is one row of the books, in the form of api.Columns. It has no prompt and no answer, because the books have none.
type requestRow api.Record

// MarshalJSON writes the columns in their order. A key without a name or an owner has none of them.
func (r *requestRow) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for _, c := range shownColumns {
		value := c.Shown((*api.Record)(r))
		if omitted(c) && value == "" {
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(append(b, '"'), c.Name...), `":`...), text...)
		b = append(b, ',')
	}
	b[len(b)-1] = '}'
	return b, nil
}

// Schema describes the columns.
func (requestRow) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false, Properties: map[string]*huma.Schema{}}
	for _, c := range shownColumns {
		p := &huma.Schema{Description: c.Doc, Nullable: c.Nullable()}
		switch c.At(new(api.Record)).(type) {
		case *string:
			p.Type = huma.TypeString
		case *bool:
			p.Type = huma.TypeBoolean
		case *time.Time:
			p.Type, p.Format = huma.TypeString, "date-time"
		case *time.Duration:
			p.Type, p.Format = huma.TypeNumber, "double"
		case **time.Duration:
			if p.Type, p.Format = huma.TypeInteger, "int64"; c.Derived {
				p.Type, p.Format = huma.TypeNumber, "double"
			}
		default:
			p.Type, p.Format = huma.TypeInteger, "int64"
		}
		for _, one := range c.Enum {
			p.Enum = append(p.Enum, one)
		}
		if c.Example != "" {
			p.Examples = []any{c.Example}
			if n, err := strconv.ParseInt(c.Example, 10, 64); err == nil {
				p.Examples = []any{n}
			}
		}
		s.Properties[c.Name] = p
		if !omitted(c) {
			s.Required = append(s.Required, c.Name)
		}
	}
	s.PrecomputeMessages()
	return s
}

// omitted reports whether an empty value of the column is left out.
func omitted(c *api.Column) bool { return c.Derived && !c.Nullable() }

var shownColumns = slices.DeleteFunc(slices.Clone(api.Columns), func(c *api.Column) bool { return c.Hidden })

type requestsBody struct {
	Requests   []*requestRow `json:"requests" doc:"The newest first"`
	NextCursor *string       `json:"next_cursor" doc:"cursor of the next page; null on the last page"`
	tabular
}

type requestsOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	NextCursor  string `header:"X-Next-Cursor" doc:"next_cursor, also for CSV; absent on the last page"`
	Body        requestsBody
}

// usage answers from the rollups.
func (s *Service) usage(ctx context.Context, in *usageIn) (*usageOut, error) {
	filter, zone, err := in.filter()
	if err != nil {
		return nil, err
	}
	now := time.Now().In(zone)
	body := usageBody{From: filter.From.In(zone), To: filter.To.In(zone), GroupBy: in.GroupBy, tabular: wantsCSV(ctx, in.Format)}
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
		filter.To = time.Time{} // no request is booked for later, and whole days are faster to read
	}
	if !body.From.Before(body.To) {
		return nil, api.Errorf(api.CodeBadRequest, "from is in the future: send an earlier one")
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
			g.KeyLabel, g.Revoked = k.Label(), k.RevokedAt != nil
		}
	}
	body.Usage, body.Groups, body.Total = append([]api.UsageGroup{}, used.Rows...), used.Groups, used.Total
	body.Truncated = int64(len(body.Usage)) < body.Groups
	return &usageOut{body.disposition("usage.csv"), body}, nil
}

func checkGroups(by []api.Dimension, span time.Duration) error {
	seen, times := map[api.Dimension]bool{}, 0
	for _, d := range by {
		if seen[d] {
			return api.Errorf(api.CodeBadRequest, "group_by has %s twice: send each value once", d)
		}
		if seen[d] = true; d.IsTime() {
			times++
		}
	}
	if times > 1 {
		return api.Errorf(api.CodeBadRequest, "group_by can have only one of hour, day, week and month")
	}
	if seen[api.ByHour] && span > longestHours {
		return api.Errorf(api.CodeBadRequest, "group_by=hour covers at most %d days: choose a shorter span, or group by day", longestHours/(24*time.Hour))
	}
	return nil
}

// keyNames returns the keys by preview.
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
	out := &requestsOut{Body: requestsBody{Requests: make([]*requestRow, 0, len(list)), tabular: wantsCSV(ctx, in.Format)}}
	for i := range list {
		list[i].At, list[i].KeyLabel = list[i].At.In(zone), names[list[i].Key].Label()
		out.Body.Requests = append(out.Body.Requests, (*requestRow)(&list[i]))
	}
	if next != nil {
		out.NextCursor = cursor(*next)
		out.Body.NextCursor = &out.NextCursor
	}
	out.Disposition = out.Body.disposition("requests.csv")
	return out, nil
}

// cursorMark begins every cursor, so that later forms can be told from this one.
const cursorMark = "1."

func cursor(p store.Place) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s%d.%s", cursorMark, p.At, p.ID))
}

// parseCursor is the inverse of cursor. An empty text means the first page.
func parseCursor(text string) (store.Place, error) {
	if text == "" {
		return store.Place{}, nil
	}
	plain, err := base64.RawURLEncoding.Strict().DecodeString(text)
	rest, ok := strings.CutPrefix(string(plain), cursorMark)
	at, id, _ := strings.Cut(rest, ".")
	ms, notNumber := strconv.ParseInt(at, 10, 64)
	if err != nil || !ok || notNumber != nil || ms < 0 || id == "" || !auth.ValidRequestID(id) {
		return store.Place{}, api.Errorf(api.CodeBadRequest, "cursor is not valid: send next_cursor of the previous page, or no cursor for the newest requests")
	}
	return store.Place{At: ms, ID: id}, nil
}
