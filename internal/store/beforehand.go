package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ollama-api-service/internal/disk"
)

// keptCopies is how many copies from before migrations are kept. One migration that fails and is tried again makes one.
const keptCopies = 2

// copySpare is the room that a copy leaves free for the migration itself.
const copySpare = 8 << 20

const copyInfix = ".schema-"

// copyBefore keeps the database as it is before a migration, next to it: FILE.schema-VERSION.TIME. It is the way back to the program that
// wrote it: stop the service, and give the copy the name of the database. Where there is no room for it nothing is migrated.
func copyBefore(ctx context.Context, db *sql.DB, path string, version int64, now time.Time, log *slog.Logger) error {
	if copied, err := alreadyCopied(ctx, db, path, version); err != nil || copied {
		return err // an earlier try of the same migration made it
	}
	size, err := (&Store{reader: db}).Bytes(ctx)
	if err != nil {
		return err
	}
	if free, err := disk.Free(filepath.Dir(path)); err == nil && free < size+size/10+copySpare {
		return caused{fmt.Errorf("there is no room for a copy of the database before its schema changes, which is the way back: it needs %d MiB and %d MiB are free; free some, or go without with MIGRATION_COPY=false",
			(size+size/10+copySpare)>>20, free>>20), syscall.ENOSPC}
	}
	name := fmt.Sprintf("%s%s%d.%s", path, copyInfix, version, now.UTC().Format("20060102-150405"))
	partial := name + ".partial"
	removeAll(globEscape(path) + copyInfix + "*.partial*") // of a process that was killed
	if err := copyTo(ctx, db, partial); err != nil {
		removeAll(globEscape(partial) + "*")
		return err
	}
	if err := os.Rename(partial, name); err != nil {
		return err
	}
	log.Info("the database was copied before its schema changes: to go back to the version before, stop the service and put the copy in the place of the database",
		"copy", name, "schema", version, "bytes", size)
	copies := copiesOf(path)
	for _, old := range copies[:max(0, len(copies)-keptCopies)] {
		_ = os.Remove(old)
	}
	return disk.SyncDirectory(filepath.Dir(path))
}

// alreadyCopied reports whether the newest copy is of this version and holds as many keys, requests and changes: each write to the
// database adds one of these.
func alreadyCopied(ctx context.Context, db *sql.DB, path string, version int64) (bool, error) {
	copies := copiesOf(path)
	if len(copies) == 0 || !strings.HasPrefix(copies[len(copies)-1], fmt.Sprintf("%s%s%d.", path, copyInfix, version)) {
		return false, nil
	}
	now, err := countContents(ctx, db)
	if err != nil {
		return false, err
	}
	then, err := sql.Open("sqlite", dsn(copies[len(copies)-1], "mode=ro", "immutable=1"))
	if err != nil {
		return false, err
	}
	defer then.Close()
	before, err := countContents(ctx, then)
	return err == nil && before == now, nil
}

// copiesOf are the whole copies next to a database, the oldest first, by the times in their names.
func copiesOf(path string) []string {
	copies, _ := filepath.Glob(globEscape(path) + copyInfix + "*")
	copies = slices.DeleteFunc(copies, func(name string) bool { return strings.Contains(name, ".partial") })
	slices.SortFunc(copies, func(a, b string) int {
		return strings.Compare(a[strings.LastIndex(a, "."):], b[strings.LastIndex(b, "."):])
	})
	return copies
}

func removeAll(pattern string) {
	names, _ := filepath.Glob(pattern)
	for _, name := range names {
		_ = os.Remove(name)
	}
}

// globEscape is a path in which no character is a pattern.
func globEscape(path string) string {
	if filepath.Separator == '\\' {
		return path // Windows has no escapes, and [ is rare there
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
