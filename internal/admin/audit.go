package admin

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

type auditIn struct {
	Span
	Actor  []string `query:"actor" maxItems:"100" doc:"Previews of the keys that made the change, or command-line, or first-start, separated by commas" example:"[\"env-admin\"]"`
	Action []string `query:"action" maxItems:"100" enum:"key.create,key.change,key.rotate,key.revoke,backend.add,backend.change,backend.remove" doc:"What was done, separated by commas" example:"[\"key.revoke\"]"`
	Target []string `query:"target" maxItems:"100" doc:"Previews of changed keys and names of changed backends, separated by commas" example:"[\"oas_8rT2kLmN0q\"]"`
	Limit  int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most entries to show"`
	Cursor string   `query:"cursor" maxLength:"256" doc:"next_cursor of the previous page, unchanged, with the same filters"`
	Format string   `query:"format" enum:"json,csv" doc:"csv returns a table for spreadsheets, as Accept: text/csv does"`
}

// auditRow is an entry of the audit table, with the current names of the keys.
type auditRow struct {
	ID         int64          `json:"id" example:"12"`
	At         time.Time      `json:"at"`
	Actor      string         `json:"actor" doc:"Preview of the key that made the change, or command-line, or first-start" example:"env-admin"`
	ActorName  string         `json:"actor_name,omitempty" doc:"The current name of that key"`
	Action     string         `json:"action" enum:"key.create,key.change,key.rotate,key.revoke,backend.add,backend.change,backend.remove"`
	Target     string         `json:"target" doc:"Preview of the changed key, or name of the changed backend" example:"oas_8rT2kLmN0q"`
	TargetName string         `json:"target_name,omitempty" doc:"The current name of that key"`
	From       string         `json:"from" doc:"Client address, or local for a command on the machine" example:"10.0.0.7"`
	Detail     map[string]any `json:"detail" doc:"What changed, by field: the value before (from) and after (to); forced if the caller used force. Never a secret"`
}

type auditBody struct {
	Audit      []auditRow `json:"audit" doc:"Newest first"`
	NextCursor *string    `json:"next_cursor" doc:"cursor of the next page; null on the last"`
	tabular
}

type auditOut struct {
	Disposition string `header:"Content-Disposition" doc:"A file name, for CSV"`
	NextCursor  string `header:"X-Next-Cursor" doc:"next_cursor, also for CSV; absent on the last page"`
	Body        auditBody
}

var auditExample = func() auditBody {
	next := mark("audit", "12")
	return auditBody{NextCursor: &next, Audit: []auditRow{{
		ID: 12, At: ExampleTime, Actor: "env-admin", ActorName: "ADMIN_API_KEY", From: "10.0.0.7",
		Action: store.ActionChange, Target: "oas_8rT2kLmN0q", TargetName: "Production API Key",
		Detail: map[string]any{"rate_limit": map[string]any{"from": 500, "to": 1000}},
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
	out := &auditOut{Body: auditBody{Audit: make([]auditRow, 0, len(list)), tabular: wantsCSV(ctx, in.Format)}}
	for _, e := range list {
		row := auditRow{
			ID: e.ID, At: e.At.In(zone), Actor: e.Actor, ActorName: names[e.Actor].Name, Action: e.Action,
			Target: e.Target, TargetName: names[e.Target].Name, From: e.From,
		}
		if err := json.Unmarshal(e.Detail, &row.Detail); err != nil {
			return nil, api.Wrap(api.CodeInternal, err, "an entry of the audit table cannot be read")
		}
		out.Body.Audit = append(out.Body.Audit, row)
	}
	if next > 0 {
		out.NextCursor = mark("audit", strconv.FormatInt(next, 10))
		out.Body.NextCursor = &out.NextCursor
	}
	out.Disposition = out.Body.disposition("audit.csv")
	return out, nil
}

func (b auditBody) table() [][]string {
	rows := [][]string{{"id", "at", "actor", "actor_name", "action", "target", "target_name", "from", "detail"}}
	for i := range b.Audit {
		r := &b.Audit[i]
		detail, _ := json.Marshal(r.Detail) // it came from JSON
		rows = append(rows, cells(r.ID, &r.At, r.Actor, r.ActorName, r.Action, r.Target, r.TargetName, r.From, string(detail)))
	}
	return rows
}
