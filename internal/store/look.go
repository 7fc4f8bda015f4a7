package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ollama-api-service/internal/api"
)

// Sight is what can be read of a database without writing to it.
type Sight struct {
	Schema, Newest int64 // the version of the database, and the one that this program needs
	SecretCheck    []byte
	// Admin reports whether an admin key exists. Backends are as in Store. Both are only set for a current schema.
	Admin    bool
	Backends []api.Backend
}

// Look inspects a database. It creates, migrates and writes nothing. A missing file is fs.ErrNotExist.
func Look(ctx context.Context, path string, now time.Time) (*Sight, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // as the service opens it
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no database: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("the database cannot be opened: %w; the service needs to read and write the file and its directory", err)
	}
	f.Close()
	sight := &Sight{Newest: schemaVersion()}
	if sight.Schema, err = inspect(ctx, path); err != nil || sight.Schema == 0 {
		return sight, err
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=ro", "_busy_timeout=5000", "_dqs=0"))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	s := &Store{reader: db}
	if sight.SecretCheck, err = s.SecretCheck(ctx); err != nil || sight.Schema < sight.Newest {
		return sight, err
	}
	if sight.Admin, err = s.AdminExists(ctx, now); err != nil {
		return nil, err
	}
	sight.Backends, err = s.Backends(ctx)
	return sight, err
}
