// Package store is the database: keys, the audit table, usage rows and their rollups. It contains all SQL of the program, only with bound
// parameters, in a form that SQLite and PostgreSQL both understand. What only SQLite needs is in sqlite.go.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/api"
)

// Store is the database. Its methods may be called from any goroutine. Failures of the database are *api.Error with CodeUnavailable:
// nothing was changed, and the same call may succeed later.
type Store struct {
	// writer has one connection: SQLite has one writer anyway, and a queue in Go is fairer than waiting for its lock.
	writer *sql.DB
	reader *sql.DB
	path   string
	// What transactions have read and cannot change.
	dictionaries dictionaries
	tail         tail
	foldRows     int
	waits        atomic.Pointer[TrimWait]
}

// Close closes all connections. Committed data is also safe without it.
func (s *Store) Close() error {
	// The writer is closed last: the last connection moves the write-ahead log into the file.
	return errors.Join(s.reader.Close(), s.writer.Close())
}

// SecretCheck returns the HMAC of a constant under the SECRET_KEY that this database belongs to, or nil if none is set yet.
func (s *Store) SecretCheck(ctx context.Context) ([]byte, error) {
	var mac []byte
	err := s.reader.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = $1`, secretCheck).Scan(&mac)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("read", err)
	}
	return mac, nil
}

// SetSecretCheck replaces the result of SecretCheck.
func (s *Store) SetSecretCheck(ctx context.Context, mac []byte) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO meta (name, value) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, secretCheck, mac)
		return err
	})
}

const secretCheck = "secret_check"

// write runs fn in one transaction. It commits if fn returns nil and changes nothing otherwise. ctx limits only the wait for the
// connection. Once begun, a transaction is short and runs to its end, so that a client that disconnects cannot leave the outcome
// uncertain.
func (s *Store) write(ctx context.Context, fn func(context.Context, *sql.Tx) error) error {
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return s.unwritten(err)
	}
	defer conn.Close()
	waiting, ctx := ctx, context.WithoutCancel(ctx)
	tx, err := conn.BeginTx(ctx, nil)
	// SQLite's wait for its lock is not fair, and another process that writes without pause can hold it for all of busy_timeout. Nothing
	// has been done yet, so it is safe to try again.
	for tries := 1; err != nil && busy(err) && tries < beginTries && waiting.Err() == nil; tries++ {
		tx, err = conn.BeginTx(ctx, nil)
	}
	if err != nil {
		return s.unwritten(err)
	}
	defer tx.Rollback()
	if err := fn(ctx, tx); err != nil {
		return s.unwritten(err)
	}
	if err := tx.Commit(); err != nil {
		return s.unwritten(err)
	}
	return nil
}

// beginTries times busy_timeout is the longest wait for another process: 20 s.
const beginTries = 4

// read runs fn on a consistent snapshot of the database.
func (s *Store) read(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := s.reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return unavailable("read", err)
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return unavailable("read", err)
	}
	return nil
}

// rows calls scan for each row of a query.
func rows(ctx context.Context, tx *sql.Tx, query string, scan func(*sql.Rows) error, args ...any) error {
	r, err := tx.QueryContext(ctx, query, args...) //nolint:gosec // every query of this package is its own text and numbered parameters
	if err != nil {
		return err
	}
	defer r.Close()
	for r.Next() {
		if err := scan(r); err != nil {
			return err
		}
	}
	return r.Err()
}

// unwritten is unavailable with the cause of a disk failure.
func (s *Store) unwritten(err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	return unavailable("written", withTriedCause(s.path, err))
}

// unavailable returns an *api.Error as it is and converts every other failure to CodeUnavailable with a private cause.
func unavailable(done string, err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	return api.Wrap(api.CodeUnavailable, withCause(err),
		fmt.Sprintf("the database cannot be %s now; try again in a moment, or see the log of the service for the cause", done))
}

func millis(t time.Time) int64 { return t.UnixMilli() }

func instant(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// nullMillis converts an instant that may be absent.
func nullMillis(t *time.Time) any {
	if t == nil {
		return nil
	}
	return millis(*t)
}
