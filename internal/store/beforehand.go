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

// keptCopies is how many copies from before migrations are kept. A migration that fails and is repeated makes only one.
const keptCopies = 2

// copySpare is the space that a copy leaves free for the migration itself.
const copySpare = 8 << 20

const copyInfix = ".schema-"

// copyBefore copies the database next to it before a migration, as FILE.schema-VERSION.TIME. To go back to the previous program, stop the
// service and rename the copy to the database. Without enough space for the copy, nothing is migrated.
func copyBefore(ctx context.Context, db *sql.DB, path string, version int64, now time.Time, log *slog.Logger) error {
	if copied, err := alreadyCopied(ctx, db, path, version); err != nil || copied {
		return err // an earlier attempt of the same migration made it
	}
	size, err := (&Store{reader: db}).Bytes(ctx)
	if err != nil {
		return err
	}
	if free, err := disk.Free(filepath.Dir(path)); err == nil && free < size+size/10+copySpare {
		return caused{fmt.Errorf("there is not enough space to copy the database before its schema changes: the copy needs %d MiB and %d MiB are free; free some space, or set MIGRATION_COPY=false to migrate without a copy",
			(size+size/10+copySpare)>>20, free>>20), syscall.ENOSPC}
	}
	name := fmt.Sprintf("%s%s%d.%s", path, copyInfix, version, now.UTC().Format("20060102-150405"))
	partial := name + ".partial"
	removeAll(globEscape(path) + copyInfix + "*.partial*") // left by a killed process
	if err := copyTo(ctx, db, partial); err != nil {
		removeAll(globEscape(partial) + "*")
		return err
	}
	if err := os.Rename(partial, name); err != nil {
		return err
	}
	log.Info("the database was copied before its schema changes: to go back to the previous version, stop the service and replace the database by the copy",
		"copy", name, "schema", version, "bytes", size)
	copies := copiesOf(path)
	for _, old := range copies[:max(0, len(copies)-keptCopies)] {
		_ = os.Remove(old)
	}
	return disk.SyncDirectory(filepath.Dir(path))
}

// alreadyCopied reports whether the newest copy has this version and the same number of keys, requests and audit entries. Each write to
// the database adds one of these.
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

// copiesOf returns the complete copies next to a database, the oldest first, by the times in their names.
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

// globEscape escapes the pattern characters in a path.
func globEscape(path string) string {
	if filepath.Separator == '\\' {
		return path // Windows has no escapes, and [ is rare there
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
