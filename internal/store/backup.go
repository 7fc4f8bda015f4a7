package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
)

// Contents is how much a database holds: two copies of one state have equal ones.
type Contents struct {
	Schema       int64 `json:"schema"`
	Keys         int64 `json:"keys"`     // revoked ones too
	Requests     int64 `json:"requests"` // rows of the books
	AuditEntries int64 `json:"audit_entries"`
}

// Copy writes the database, as it is at one moment, to path, which must not exist: one file with mode 0600, without the gaps of
// the original. Others may read and write meanwhile. An error or the end of ctx may leave a piece of the file.
func (s *Store) Copy(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return copyTo(ctx, s.reader, path)
}

func copyTo(ctx context.Context, db *sql.DB, path string) error {
	// SQLite would make it readable for everybody; an empty file it takes as it is.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, path); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the database cannot be copied to %s: %w", path, withCause(err))
	}
	return f.Sync()
}

// Bytes is about how large a Copy will be.
func (s *Store) Bytes(ctx context.Context) (int64, error) {
	var size int64
	err := s.reader.QueryRowContext(ctx, `SELECT (c.page_count - f.freelist_count) * p.page_size
		FROM pragma_page_count() c, pragma_freelist_count() f, pragma_page_size() p`).Scan(&size)
	if err != nil {
		return 0, unavailable("read", err)
	}
	return size, nil
}

// Examine reads a whole database file that nobody has open, a Copy, without changing it. It returns an error for a damaged file,
// for one of another program and for one of a newer version of this program. An older schema is none: Create brings it up to
// date.
func Examine(ctx context.Context, path string) (c Contents, secretCheck []byte, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return c, nil, err
	}
	if c.Schema, err = inspect(ctx, path); err != nil {
		return c, nil, err
	}
	if c.Schema == 0 {
		return c, nil, fmt.Errorf("%s is an empty database", path)
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=ro", "_dqs=0"))
	if err != nil {
		return c, nil, err
	}
	s := &Store{writer: db, reader: db}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil {
		return c, nil, openError(path, err)
	}
	if verdict != "ok" {
		return c, nil, fmt.Errorf("the database %s is damaged: %s", path, verdict)
	}
	schema := c.Schema
	if c, err = countContents(ctx, db); err != nil {
		return c, nil, openError(path, err)
	}
	c.Schema = schema
	secretCheck, err = s.SecretCheck(ctx)
	return c, secretCheck, err
}

// countContents counts everything but the schema.
func countContents(ctx context.Context, db *sql.DB) (c Contents, err error) {
	err = db.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM keys), (SELECT COUNT(*) FROM requests), (SELECT COUNT(*) FROM audit)`).
		Scan(&c.Keys, &c.Requests, &c.AuditEntries)
	return c, err
}

// Files are the names that a database has on the disk: the file and what SQLite keeps beside it.
func Files(path string) []string { return []string{path, path + "-wal", path + "-shm"} }

// Fold moves what a write-ahead log still holds into the file.
func Fold(ctx context.Context, path string) error {
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	return s.Close() // as the last one that has it open
}
