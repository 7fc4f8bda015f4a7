package admin

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

type auditIn struct {
	Span
	Actor  []string `query:"actor" maxItems:"100" doc:"Previews of the keys that asked, or command-line, or first-start, separated by commas" example:"[\"env-admin\"]"`
	Action []string `query:"action" maxItems:"100" enum:"key.create,key.change,key.rotate,key.revoke,backend.add,backend.change,backend.remove" doc:"What was done, separated by commas" example:"[\"key.revoke\"]"`
	Target []string `query:"target" maxItems:"100" doc:"Previews of keys and names of backends, separated by commas" example:"[\"oas_8rT2kLmN0q\"]"`
	Limit  int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most lines to show"`
	Cursor string   `query:"cursor" maxLength:"256" doc:"next_cursor of the page before, unchanged; the filters must be the same again"`
	Format string   `query:"format" enum:"json,csv" doc:"csv is a table for spreadsheets, and so is Accept: text/csv"`
}

// auditRow is a line of the audit table, with the names that the keys have now.
type auditRow struct {
	ID         int64          `json:"id" example:"12"`
	At         time.Time      `json:"at"`
	Actor      string         `json:"actor" doc:"Preview of the key that asked, or command-line, or first-start" example:"env-admin"`
	ActorName  string         `json:"actor_name,omitempty" doc:"What that key is called now"`
	Action     string         `json:"action" enum:"key.create,key.change,key.rotate,key.revoke,backend.add,backend.change,backend.remove"`
	Target     string         `json:"target" doc:"Preview of the key, or name of the backend, that was changed" example:"oas_8rT2kLmN0q"`
	TargetName string         `json:"target_name,omitempty" doc:"What that key is called now"`
	From       string         `json:"from" doc:"Client address, or local for a command on the machine" example:"10.0.0.7"`
	Detail     map[string]any `json:"detail" doc:"What changed, by field: of a change what it was (from) and what it became (to); forced where the caller insisted. Never a secret"`
}

type auditBody struct {
	Audit      []auditRow `json:"audit" doc:"The newest first"`
	NextCursor *string    `json:"next_cursor" doc:"cursor of the next page; null on the last"`
	asCSV      bool
}

type auditOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	NextCursor  string `header:"X-Next-Cursor" doc:"next_cursor, also for CSV; absent on the last page"`
	Body        auditBody
}

func (s *Service) auditOperations(a huma.API) {
	operation(a, huma.Operation{
		OperationID: "audit", Method: "GET", Path: "/api/admin/audit", Summary: "Changes of keys and backends (admin)",
		Description: "Each change of a key or of an Ollama server, with who made it, when and from where, the newest first. It is kept for ever. Secrets are never in it. " +
			"In CSV, a text that a spreadsheet would take for a formula has an apostrophe in front, and detail is JSON.",
		Tags: []string{"API keys (admin)"}, Errors: []int{503}, Responses: tableResponse(auditExample, "id,at,actor,actor_name,action,…\n12,2026-11-25T09:30:00Z,env-admin,,key.change,…\n"),
	}, s.audit)
}

var auditExample = func() auditBody {
	next := mark("audit", "12")
	return auditBody{NextCursor: &next, Audit: []auditRow{{
		ID: 12, At: ExampleTime, Actor: "env-admin", ActorName: "ADMIN_API_KEY", Action: store.ActionChange, Target: "oas_8rT2kLmN0q", TargetName: "Production API Key",
		From: "10.0.0.7", Detail: map[string]any{"rate_limit": map[string]any{"from": 500, "to": 1000}},
	}}}
}()

// audit lists the audit table.
func (s *Service) audit(ctx context.Context, in *auditIn) (*auditOut, error) {
	from, to, zone, err := in.read()
	if err != nil {
		return nil, err
	}
	q := store.AuditQuery{Actors: in.Actor, Actions: in.Action, Targets: in.Target, From: from, To: to, Limit: in.Limit}
	place, err := unmark("audit", in.Cursor, 1)
	if err != nil {
		return nil, err
	}
	if place != nil {
		if q.Before, err = strconv.ParseInt(place[0], 10, 64); err != nil || q.Before < 1 {
			return nil, errCursor
		}
	}
	list, next, err := s.Store.Audit(ctx, q)
	if err != nil {
		return nil, err
	}
	names, err := s.keyNames(ctx)
	if err != nil {
		return nil, err
	}
	out := &auditOut{Body: auditBody{Audit: make([]auditRow, 0, len(list)), asCSV: wantsCSV(ctx, in.Format)}}
	for _, e := range list {
		row := auditRow{
			ID: e.ID, At: e.At.In(zone), Actor: e.Actor, ActorName: names[e.Actor].Name, Action: e.Action,
			Target: e.Target, TargetName: names[e.Target].Name, From: e.From,
		}
		if err := json.Unmarshal(e.Detail, &row.Detail); err != nil {
			return nil, api.Wrap(api.CodeInternal, err, "a line of the audit table cannot be read")
		}
		out.Body.Audit = append(out.Body.Audit, row)
	}
	if next > 0 {
		out.NextCursor = mark("audit", strconv.FormatInt(next, 10))
		out.Body.NextCursor = &out.NextCursor
	}
	out.Disposition = disposition(out.Body.asCSV, "audit.csv")
	return out, nil
}

// ContentType is CSV where that was asked for.
func (b auditBody) ContentType(ct string) string { return tableType(b.asCSV, ct) }

func (b auditBody) table() [][]string {
	rows := [][]string{{"id", "at", "actor", "actor_name", "action", "target", "target_name", "from", "detail"}}
	for i := range b.Audit {
		r := &b.Audit[i]
		detail, _ := json.Marshal(r.Detail) // it was read from JSON
		rows = append(rows, cells(r.ID, &r.At, r.Actor, r.ActorName, r.Action, r.Target, r.TargetName, r.From, string(detail)))
	}
	return rows
}
