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

// What an audit line says was done.
const (
	ActionCreate = "key.create"
	ActionChange = "key.change"
	ActionRotate = "key.rotate"
	ActionRevoke = "key.revoke"

	ActionBackendAdd    = "backend.add"
	ActionBackendChange = "backend.change"
	ActionBackendRemove = "backend.remove"
)

// Actions are all of them.
var Actions = []string{ActionCreate, ActionChange, ActionRotate, ActionRevoke, ActionBackendAdd, ActionBackendChange, ActionBackendRemove}

// AuditEntry is one line of the audit table: who did what to which key or backend, when and from where.
type AuditEntry struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor" doc:"Preview of the key that asked, or command-line, or first-start" example:"env-admin"`
	Action string          `json:"action" example:"key.change"`
	Target string          `json:"target" doc:"Preview of the key, or name of the backend, that was changed" example:"oas_8rT2kLmN0q"`
	From   string          `json:"from" doc:"Client address, or local" example:"10.0.0.7"`
	Detail json.RawMessage `json:"detail" doc:"What changed, by field; never a secret or its hash"`
}

// AuditQuery asks for lines of the audit table, the newest first, at most Limit of those before the line Before; 0 is the newest of all.
// A list that is empty chooses everything, From belongs to the span and To does not.
type AuditQuery struct {
	Actors, Actions, Targets []string
	From, To                 time.Time
	Before                   int64
	Limit                    int
}

// Audit lists lines of the audit table. A next of 0 says that there are no more; otherwise it is the Before of the next page.
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

// note writes an audit line in the transaction of the change itself: there is never the one without the other.
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

// moved is what a field was and what it became.
type moved struct {
	From any `json:"from"`
	To   any `json:"to"`
}

// differences are the fields of a key that a change moved, by their JSON name.
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

// fields are the public fields of a key as its JSON has them; the key's name in the books is the entry's target.
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
