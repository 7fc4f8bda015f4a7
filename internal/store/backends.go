package store

import (
	"context"
	"database/sql"
	"errors"
	"net/url"

	"ollama-api-service/internal/api"
)

const backendColumns = `name, url, slots, total, weight, draining, added_at, ca, client_cert, client_key, auth_header`

// Backends returns the servers that admins added, the oldest first. Servers of the settings with a stored drain state have a nil URL.
func (s *Store) Backends(ctx context.Context) ([]api.Backend, error) {
	var list []api.Backend
	err := s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, `SELECT `+backendColumns+` FROM backends ORDER BY added_at, name`, func(r *sql.Rows) error {
			b, err := scanBackend(r)
			list = append(list, b)
			return err
		})
	})
	return list, err
}

// AddBackend stores a new server. It returns CodeBadRequest for an invalid field and CodeConflict if the name is taken.
func (s *Store) AddBackend(ctx context.Context, b api.Backend, by api.Change) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO backends (`+backendColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
			ON CONFLICT (name) DO UPDATE SET url = excluded.url, slots = excluded.slots, total = excluded.total, weight = excluded.weight,
			draining = excluded.draining, added_at = excluded.added_at, ca = excluded.ca, client_cert = excluded.client_cert,
			client_key = excluded.client_key, auth_header = excluded.auth_header WHERE backends.url = ''`, // a server that is no longer in the settings
			b.Name, b.URL.String(), b.Slots, b.Total, b.Weight, flag(b.Draining), millis(by.At),
			b.Reach.CA, b.Reach.ClientCert, b.Reach.ClientKey, b.Reach.AuthHeader)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, api.Errorf(api.CodeConflict, "a backend %s already exists", b.Name))
		}
		detail := map[string]any{"url": b.URL.String(), "slots": b.Slots, "total": b.Total, "weight": b.Weight, "draining": b.Draining}
		for name, text := range reachFields(b.Reach.Shown()) {
			if text != "" {
				detail[name] = text
			}
		}
		return note(ctx, tx, by, ActionBackendAdd, b.Name, detail)
	})
}

// ChangeBackend changes an added server and returns the new state. It returns CodeNotFound, or CodeBadRequest if the result is invalid. A
// patch that changes nothing writes nothing.
func (s *Store) ChangeBackend(ctx context.Context, name string, p api.BackendPatch, by api.Change) (b api.Backend, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		old, err := scanBackend(tx.QueryRowContext(ctx, `SELECT `+backendColumns+` FROM backends WHERE name = $1 AND url <> ''`, name))
		if errors.Is(err, sql.ErrNoRows) {
			return errNoBackend(name)
		}
		if err != nil {
			return err
		}
		b = old
		p.Apply(&b)
		if err := b.Validate(); err != nil {
			return err
		}
		changed := map[string]any{}
		for _, f := range []struct {
			name     string
			from, to any
		}{
			{"slots", old.Slots, b.Slots},
			{"total", old.Total, b.Total},
			{"weight", old.Weight, b.Weight},
			{"draining", old.Draining, b.Draining},
		} {
			if f.from != f.to {
				changed[f.name] = moved{f.from, f.to}
			}
		}
		// The audit table records which of these changed, and never their values.
		before, shown, is := reachFields(old.Reach), reachFields(b.Reach.Shown()), reachFields(b.Reach)
		for field, was := range reachFields(old.Reach.Shown()) {
			if before[field] != is[field] {
				changed[field] = moved{was, shown[field]}
			}
		}
		if len(changed) == 0 {
			return nil
		}
		if _, err := tx.ExecContext(ctx, `UPDATE backends SET slots = $2, total = $3, weight = $4, draining = $5,
			ca = $6, client_cert = $7, client_key = $8, auth_header = $9 WHERE name = $1`,
			name, b.Slots, b.Total, b.Weight, flag(b.Draining), b.Reach.CA, b.Reach.ClientCert, b.Reach.ClientKey, b.Reach.AuthHeader); err != nil {
			return err
		}
		return note(ctx, tx, by, ActionBackendChange, name, changed)
	})
	return b, err
}

// reachFields returns the fields of a Reach by their name in the API.
func reachFields(r api.Reach) map[string]string {
	return map[string]string{"ca": r.CA, "client_cert": r.ClientCert, "client_key": r.ClientKey, "auth_header": r.AuthHeader}
}

// DrainBackend stores whether a server of the settings is drained.
func (s *Store) DrainBackend(ctx context.Context, name string, drain bool, by api.Change) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO backends (`+backendColumns+`) VALUES ($1, '', 0, 0, 0, $2, $3, '', '', '', '')
			ON CONFLICT (name) DO UPDATE SET draining = excluded.draining`, name, flag(drain), millis(by.At)); err != nil {
			return err
		}
		return note(ctx, tx, by, ActionBackendChange, name, map[string]any{"draining": moved{!drain, drain}})
	})
}

// RemoveBackend deletes an added server, or returns CodeNotFound.
func (s *Store) RemoveBackend(ctx context.Context, name string, by api.Change) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `DELETE FROM backends WHERE name = $1 AND url <> ''`, name)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errNoBackend(name))
		}
		return note(ctx, tx, by, ActionBackendRemove, name, map[string]any{})
	})
}

func errNoBackend(name string) error {
	return api.Errorf(api.CodeNotFound, "there is no backend %s that an admin added", name)
}

// scanBackend reads backendColumns from a *sql.Row or *sql.Rows. The URL of a server of the settings is nil.
func scanBackend(row interface{ Scan(...any) error }) (b api.Backend, err error) {
	var address string
	var draining, added int64
	if err := row.Scan(&b.Name, &address, &b.Slots, &b.Total, &b.Weight, &draining, &added,
		&b.Reach.CA, &b.Reach.ClientCert, &b.Reach.ClientKey, &b.Reach.AuthHeader); err != nil {
		return b, err
	}
	if address != "" {
		b.URL, err = url.Parse(address)
	}
	b.Draining, b.AddedAt = draining != 0, instant(added)
	return b, err
}
