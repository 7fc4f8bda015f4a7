package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"ollama-api-service/internal/disk"
)

//go:embed migrations/sqlite/*.sql
var migrations embed.FS

// leastSQLite is the first version that fixes the corruption of a write-ahead log that is reset while two connections write
// (sqlite.org/wal.html#walresetbug, all of 3.7.0 to 3.51.2).
var leastSQLite = [3]int{3, 51, 3}

// Create opens the database for a service: it creates the directory (mode 0700) and the file (0600) if they do not exist, and upgrades
// the schema. It leaves a file unchanged if it is not a database or was written by a newer program.
func Create(ctx context.Context, path string) (*Store, error) {
	return CreateLogged(ctx, path, slog.New(slog.DiscardHandler), CreateOptions{})
}

// CreateOptions are options of CreateLogged.
type CreateOptions struct {
	Copy bool // copy the database before its schema changes
	Now  func() time.Time
}

// CreateLogged is Create, but logs the progress of an upgrade that takes longer than a second.
func CreateLogged(ctx context.Context, path string, log *slog.Logger, o CreateOptions) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("the directory for the database cannot be created: %w", err)
	}
	// SQLite gives -wal and -shm the mode of the file, so this makes them private too.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the database cannot be created: %w; the service needs to read and write the file and its directory", err)
	}
	f.Close()
	version, err := inspect(ctx, path)
	if err != nil {
		return nil, err
	}
	s, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	if o.Copy && version > 0 && version < schemaVersion() {
		if err := copyBefore(ctx, s.writer, path, version, o.Now(), log); err != nil {
			s.Close()
			return nil, err
		}
	}
	if err := migrateLogged(ctx, s.writer, path, log); err != nil {
		s.Close()
		return nil, fmt.Errorf("the schema of %s cannot be upgraded: %w; the failed step changed nothing", path, withTriedCause(path, err))
	}
	if err := errors.Join(s.addOldTotals(ctx), s.dropOld(ctx)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Open opens a database that a service has created. It never creates or migrates one: a missing file is fs.ErrNotExist, and another
// schema version is an error that says what to do.
func Open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	readOnly := errors.Is(err, syscall.EROFS)
	if readOnly {
		f, err = os.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no database: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("the database cannot be opened: %w; run this as the user of the service", err)
	}
	f.Close()
	version, err := inspect(ctx, path)
	if err != nil {
		return nil, err
	}
	if version < schemaVersion() {
		return nil, fmt.Errorf("the database %s has schema %d and this program needs %d: run `ollama-api-service serve` once to upgrade it",
			path, version, schemaVersion())
	}
	if readOnly {
		return connectReadOnly(ctx, path)
	}
	return connect(ctx, path)
}

// inspect reads the schema version without writing to the file. 0 means an empty database. It refuses files that are not databases,
// databases of other programs and databases of newer versions.
func inspect(ctx context.Context, path string) (int64, error) {
	db, err := sql.Open("sqlite", dsn(path, append(readOnlyMode(path), "_busy_timeout=5000")...))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	if err := checkVersion(ctx, db); err != nil {
		return 0, openError(path, err)
	}
	var tables, ours int
	err = db.QueryRowContext(ctx, `SELECT count(*), count(*) FILTER (WHERE name = 'goose_db_version') FROM sqlite_master WHERE type = 'table'`).
		Scan(&tables, &ours)
	if err != nil {
		return 0, openError(path, err)
	}
	if ours == 0 {
		if tables > 0 {
			return 0, fmt.Errorf("%s is a database of another program and was not changed: name another file", path)
		}
		return 0, nil
	}
	var version int64
	if err := db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version`).Scan(&version); err != nil {
		return 0, openError(path, err)
	}
	if version > schemaVersion() {
		return 0, fmt.Errorf("the database %s has schema %d, written by a newer version of this program; this one supports only up to %d: "+
			"use that version, or restore a backup from before it", path, version, schemaVersion())
	}
	return version, nil
}

// schemaVersion is the number of the newest migration.
func schemaVersion() int64 {
	var newest int64
	files, _ := fs.Glob(migrations, "migrations/sqlite/*.sql")
	for _, name := range files {
		number, _, _ := strings.Cut(filepath.Base(name), "_")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil {
			newest = max(newest, n)
		}
	}
	return newest
}

// connect opens the writer and the readers of a file that exists.
func connect(ctx context.Context, path string) (*Store, error) {
	writer, err := sql.Open("sqlite", dsn(path, "mode=rw", "_txlock=immediate", "_busy_timeout=5000", "_foreign_keys=1",
		"_synchronous=FULL", "_dqs=0",
		// A long read makes the log grow; afterwards it shrinks to this size.
		"_pragma=journal_size_limit(67108864)", cacheSize))
	if err != nil {
		return nil, err
	}
	// One permanent connection: DataVersion compares what this connection has seen.
	writer.SetMaxOpenConns(1)
	if err := useLog(ctx, writer); err != nil {
		writer.Close()
		return nil, openError(path, err)
	}
	reader, err := sql.Open("sqlite", dsn(path, "mode=ro", "_busy_timeout=5000", "_dqs=0", cacheSize))
	if err != nil {
		writer.Close()
		return nil, err
	}
	reader.SetMaxOpenConns(readers)
	reader.SetMaxIdleConns(readers)
	if err := reader.PingContext(ctx); err != nil {
		reader.Close()
		writer.Close()
		return nil, openError(path, err)
	}
	return newStore(path, writer, reader), nil
}

func newStore(path string, writer, reader *sql.DB) *Store {
	return &Store{writer: writer, reader: reader, path: path, foldRows: foldRows}
}

// connectReadOnly opens a database on a disk that is mounted read-only. Reads work; writes fail with that cause.
func connectReadOnly(ctx context.Context, path string) (*Store, error) {
	reader, err := sql.Open("sqlite", dsn(path, append(readOnlyMode(path), "_busy_timeout=5000", "_dqs=0", cacheSize)...))
	if err != nil {
		return nil, err
	}
	if err := reader.PingContext(ctx); err != nil {
		reader.Close()
		return nil, openError(path, err)
	}
	return newStore(path, reader, reader), nil
}

// readOnlyMode returns the parameters for opening a file for reading. On a read-only disk, SQLite cannot create the log and the shared
// memory that its write-ahead mode needs (sqlite.org/wal.html#read_only_databases). Without a log, no process has the file open, so it
// can be opened as immutable. An existing log is read as it is: a killed process left it, or a process writes it on another mount.
func readOnlyMode(path string) []string {
	if _, err := disk.Free(filepath.Dir(path)); errors.Is(err, syscall.EROFS) {
		if info, err := os.Stat(path + "-wal"); err != nil || info.Size() == 0 {
			return []string{"mode=ro", "immutable=1"}
		}
	}
	return []string{"mode=ro"}
}

const readers = 4

// cacheSize lets a connection keep 16 MiB of pages, where SQLite's default is 2: the rollups of a thousand keys and the upper levels of
// the indexes of a million requests. Only pages that were read are kept.
const cacheSize = "_pragma=cache_size(-16384)"

// useLog switches the file to write-ahead mode, which persists in the file.
func useLog(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var mode string
	for {
		err := db.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode)
		if err == nil {
			break
		}
		if !busy(err) {
			return err
		}
		// SQLite does not wait for its lock here (it would deadlock with another connection that does the same), so retry in case two
		// processes start on a new file at the same time.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	if mode != "wal" {
		return fmt.Errorf("its file system has no shared memory for a write-ahead log (journal mode stays %q): "+
			"put DATA_DIR on a local disk, not on a network share", mode)
	}
	return nil
}

// dsn returns the file as a URI, so that no character of its path is special, followed by the driver's parameters.
func dsn(path string, params ...string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: strings.Join(params, "&")}
	return u.String()
}

// checkVersion refuses versions of SQLite with a known corruption bug.
func checkVersion(ctx context.Context, db *sql.DB) error {
	var text string
	if err := db.QueryRowContext(ctx, `SELECT sqlite_version()`).Scan(&text); err != nil {
		return err
	}
	var v [3]int
	fmt.Sscanf(text, "%d.%d.%d", &v[0], &v[1], &v[2])
	for i := range v {
		if v[i] > leastSQLite[i] {
			return nil
		}
		if v[i] < leastSQLite[i] {
			return fmt.Errorf("this program was built with SQLite %s, which can corrupt a database: build it with 3.51.3 or newer", text)
		}
	}
	return nil
}

// migrateLogged is migrate with progress messages: the upgrade of a database with millions of requests takes minutes.
func migrateLogged(ctx context.Context, db *sql.DB, path string, log *slog.Logger) error {
	begun := time.Now()
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		next := time.NewTimer(firstProgress)
		defer next.Stop()
		for n := 0; ; n++ {
			select {
			case <-done:
				if n > 0 {
					log.Info("the database is up to date", "seconds", math.Round(time.Since(begun).Seconds()))
				}
				return
			case <-next.C:
				next.Reset(progressEvery)
			}
			size := int64(0)
			if info, err := os.Stat(path + "-wal"); err == nil {
				size = info.Size() >> 20
			}
			log.Info("upgrading the database: this takes about a minute for each million requests, and the service starts afterwards; it can be interrupted and then starts from the beginning",
				"seconds", math.Round(time.Since(begun).Seconds()), "written_mib", size)
		}
	}()
	err := migrate(ctx, db)
	close(done)
	<-stopped
	return err
}

// When a long migration logs its progress for the first time, and how often after that.
const (
	firstProgress = time.Second
	progressEvery = 5 * time.Second
)

// migrate upgrades the schema. Each migration is a separate transaction with its number. If two processes start at the same time, the
// second one finds the work done: then it checks again instead of failing.
func migrate(ctx context.Context, db *sql.DB) error {
	for reached := int64(-1); ; {
		provider, err := goose.NewProvider(goose.DialectSQLite3, db, migrationFiles(), goose.WithDisableGlobalRegistry(true))
		if err != nil {
			return err
		}
		_, failure := provider.Up(ctx)
		if failure == nil {
			return nil
		}
		version, err := provider.GetDBVersion(ctx)
		if err != nil || version == reached {
			return failure
		}
		reached = version
	}
}

func migrationFiles() fs.FS {
	dir, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		panic(err) // the files are embedded
	}
	return dir
}

// DataVersion returns a number that changes with every commit of another process or another Store, and never with a commit of this Store.
func (s *Store) DataVersion(ctx context.Context) (int64, error) {
	var v int64
	if err := s.writer.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&v); err != nil {
		return 0, unavailable("read", err)
	}
	return v, nil
}

// openError explains a failure to open a file.
func openError(path string, err error) error {
	code := resultCode(err) & 0xff
	if err = withTriedCause(path, err); code == sqlite3.SQLITE_NOTADB || code == sqlite3.SQLITE_CORRUPT {
		return fmt.Errorf("%s is not a database or is damaged, and was not changed: restore a backup or name another file (%w)", path, err)
	}
	if fault, ok := disk.Cause(err); ok {
		return fmt.Errorf("the database %s cannot be opened: %s (%w)", path, fault.Hint, err)
	}
	switch code {
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return fmt.Errorf("the database %s cannot be opened: the service needs to read and write the file and its directory (%w)", path, err)
	}
	return fmt.Errorf("the database %s cannot be opened: %w", path, err)
}

// busy reports whether err is a lock of another process.
func busy(err error) bool { return resultCode(err)&0xff == sqlite3.SQLITE_BUSY }

// resultCode returns SQLite's extended result code; its low byte is the primary code. It returns 0 for other errors.
func resultCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}
