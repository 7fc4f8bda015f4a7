package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
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

// AuditEntry is one line of the audit table: who did what to which key or backend, when and from where.
type AuditEntry struct {
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor"` // preview of the key that asked, or "command-line"
	Action string          `json:"action"`
	Target string          `json:"target"` // preview of the key, or name of the backend, that was changed
	From   string          `json:"from"`   // client address, or "local"
	Detail json.RawMessage `json:"detail"` // what changed, an object by field; never a secret or its hash
}

// AuditLog is the newest entries, newest first: limit of them, but not more than 10,000.
func (s *Store) AuditLog(ctx context.Context, limit int) ([]AuditEntry, error) {
	var log []AuditEntry
	err := s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, `SELECT id, at, actor, action, target, from_addr, detail FROM audit ORDER BY id DESC LIMIT $1`,
			func(r *sql.Rows) error {
				var e AuditEntry
				var at int64
				var detail string
				if err := r.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Target, &e.From, &detail); err != nil {
					return err
				}
				e.At, e.Detail = instant(at), json.RawMessage(detail)
				log = append(log, e)
				return nil
			}, min(max(limit, 0), 10_000))
	})
	return log, err
}

// note writes an audit line in the transaction of the change itself: there is never the one without the other.
func note(ctx context.Context, tx *sql.Tx, by api.Change, action, target string, detail map[string]any) error {
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
