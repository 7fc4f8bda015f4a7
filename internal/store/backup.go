package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
)

// Contents counts what a database contains. Two copies of one state have equal Contents.
type Contents struct {
	Schema       int64 `json:"schema"`
	Keys         int64 `json:"keys"`     // including revoked ones
	Requests     int64 `json:"requests"` // usage rows
	AuditEntries int64 `json:"audit_entries"`
}

// Copy writes a consistent copy of the database to path, which must not exist: one file with mode 0600, without the free pages of the
// original. Other connections may read and write meanwhile. An error or the end of ctx may leave an incomplete file.
func (s *Store) Copy(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return copyTo(ctx, s.reader, path)
}

func copyTo(ctx context.Context, db *sql.DB, path string) error {
	// SQLite would create a file that every user can read. It keeps the mode of an existing empty file.
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

// Bytes returns the approximate size of a Copy.
func (s *Store) Bytes(ctx context.Context) (int64, error) {
	var size int64
	err := s.reader.QueryRowContext(ctx, `SELECT (c.page_count - f.freelist_count) * p.page_size
		FROM pragma_page_count() c, pragma_freelist_count() f, pragma_page_size() p`).Scan(&size)
	if err != nil {
		return 0, unavailable("read", err)
	}
	return size, nil
}

// Examine reads a whole database file that no process has open, such as a Copy, without changing it. It returns an error if the file is
// damaged, or was written by another program or a newer version of this one. An older schema is not an error: Create upgrades it.
func Examine(ctx context.Context, path string) (c Contents, check []byte, err error) {
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
	check, err = s.SecretCheck(ctx)
	return c, check, err
}

// countContents counts everything except the schema.
func countContents(ctx context.Context, db *sql.DB) (c Contents, err error) {
	err = db.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM keys), (SELECT COUNT(*) FROM requests), (SELECT COUNT(*) FROM audit)`).
		Scan(&c.Keys, &c.Requests, &c.AuditEntries)
	return c, err
}

// Files returns the names of a database's files: the file itself and those that SQLite keeps next to it.
func Files(path string) []string { return []string{path, path + "-wal", path + "-shm"} }

// Fold moves the contents of a write-ahead log into the file.
func Fold(ctx context.Context, path string) error {
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	return s.Close() // closing the last connection does it
}
