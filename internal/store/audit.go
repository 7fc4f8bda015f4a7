package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"time"

	"ollama-api-service/internal/api"
)

// The actions in the audit table.
const (
	ActionCreate = "key.create"
	ActionChange = "key.change"
	ActionRotate = "key.rotate"
	ActionRevoke = "key.revoke"

	ActionBackendAdd    = "backend.add"
	ActionBackendChange = "backend.change"
	ActionBackendRemove = "backend.remove"
)

// Actions lists the actions.
var Actions = []string{ActionCreate, ActionChange, ActionRotate, ActionRevoke, ActionBackendAdd, ActionBackendChange, ActionBackendRemove}

// AuditEntry is one entry of the audit table: who did what to which key or backend, when and from where.
type AuditEntry struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor" doc:"Preview of the key that made the change, or command-line, or first-start" example:"env-admin"`
	Action string          `json:"action" example:"key.change"`
	Target string          `json:"target" doc:"Preview of the changed key, or name of the changed backend" example:"oas_8rT2kLmN0q"`
	From   string          `json:"from" doc:"Client address, or local" example:"10.0.0.7"`
	Detail json.RawMessage `json:"detail" doc:"What changed, by field; never a secret or its hash"`
}

// AuditQuery selects entries of the audit table, the newest first: at most Limit entries before the entry Before, where 0 means the
// newest. An empty list selects everything. From is inclusive, To is exclusive.
type AuditQuery struct {
	Actors, Actions, Targets []string
	From, To                 time.Time
	Before                   int64
	Limit                    int
}

// Audit lists entries of the audit table. next is 0 if there are no more, otherwise the Before of the next page.
func (s *Store) Audit(ctx context.Context, q AuditQuery) (list []AuditEntry, next int64, err error) {
	b := &builder{}
	from, to := span(&api.RequestFilter{From: q.From, To: q.To})
	where := b.within("at", from, to) + b.in("actor", q.Actors) + b.in("action", q.Actions) + b.in("target", q.Targets)
	if q.Before > 0 {
		where += " AND id < " + b.param(q.Before)
	}
	query := `SELECT id, at, actor, action, target, from_addr, detail FROM audit WHERE ` + where + ` ORDER BY id DESC LIMIT ` + b.param(q.Limit+1)
	err = s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, query, func(r *sql.Rows) error {
			var e AuditEntry
			var at int64
			var detail string
			err := r.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Target, &e.From, &detail)
			e.At, e.Detail = instant(at), json.RawMessage(detail)
			list = append(list, e)
			return err
		}, b.args...)
	})
	if err != nil {
		return nil, 0, err
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		next = list[q.Limit-1].ID
	}
	return list, next, nil
}

// note writes an audit entry in the transaction of the change, so that neither exists without the other.
func note(ctx context.Context, tx *sql.Tx, by api.Change, action, target string, detail map[string]any) error {
	if by.Force {
		detail = maps.Clone(detail)
		detail["forced"] = true
	}
	text, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO audit (at, actor, action, target, from_addr, detail) VALUES ($1, $2, $3, $4, $5, $6)`,
		millis(by.At), by.Actor, action, target, by.From, string(text))
	return err
}

// moved is the old and the new value of a field.
type moved struct {
	From any `json:"from"`
	To   any `json:"to"`
}

// differences returns the fields of a key that differ, by their JSON name.
func differences(before, after api.Key) (map[string]any, error) {
	was, err := fields(before)
	if err != nil {
		return nil, err
	}
	is, err := fields(after)
	if err != nil {
		return nil, err
	}
	changed := map[string]any{}
	for name, to := range is {
		if from := was[name]; !bytes.Equal(from, to) {
			changed[name] = moved{from, to}
		}
	}
	return changed, nil
}

// fields returns the public fields of a key as JSON, without the preview, which is the target of the audit entry.
func fields(k api.Key) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	var f map[string]json.RawMessage
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, err
	}
	delete(f, "key_preview")
	delete(f, "created_at")
	return f, nil
}
