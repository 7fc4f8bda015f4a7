package store

import (
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// upgraded upgrades path as a service that starts at a given time does.
func upgraded(t *testing.T, path string, now time.Time) {
	t.Helper()
	s := must[*Store](t)(CreateLogged(t.Context(), path, slog.New(slog.DiscardHandler), CreateOptions{Copy: true, Now: func() time.Time { return now }}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// goBack replaces the database by the copy, as docs/deployment.md describes.
func goBack(t *testing.T, path, copied string) {
	t.Helper()
	text := must[[]byte](t)(os.ReadFile(copied))
	for _, name := range Files(path) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A copy from before a migration has the schema and every row of the previous program. Two copies are kept.
func TestCopyBeforeMigration(t *testing.T) {
	path := old(t, sample(30)...)
	before, _, err := Examine(t.Context(), path)
	if err != nil || before.Schema != 1 || before.Requests != 30 {
		t.Fatalf("%+v, %v, want 30 requests of schema 1", before, err)
	}
	upgraded(t, path, noon)
	copies := copiesOf(path)
	if len(copies) != 1 || filepath.Base(copies[0]) != "old.db.schema-1."+noon.UTC().Format("20060102-150405") {
		t.Fatalf("the copies are %q, want one named by schema and time", copies)
	}
	if info, err := os.Stat(copies[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v, want mode 0600", info, err)
	}
	if got, _, err := Examine(t.Context(), copies[0]); err != nil || got != before {
		t.Errorf("the copy contains %+v, %v, want %+v", got, err, before)
	}
	// An up-to-date database is not copied.
	upgraded(t, path, noon.Add(time.Hour))
	if n := len(copiesOf(path)); n != 1 {
		t.Errorf("%d copies after a start without a migration, want 1", n)
	}
	// Going back, and forward again. The same content needs no second copy; changed content does.
	goBack(t, path, copies[0])
	if got, _, err := Examine(t.Context(), path); err != nil || got != before {
		t.Errorf("after going back: %+v, %v, want %+v", got, err, before)
	}
	upgraded(t, path, noon.Add(2*time.Hour))
	if n := len(copiesOf(path)); n != 1 {
		t.Errorf("%d copies after the same migration of the same content, want 1", n)
	}
	for i := range 3 {
		all := copiesOf(path)
		goBack(t, path, all[len(all)-1])
		db := must[*sql.DB](t)(sql.Open("sqlite", dsn(path)))
		if _, err := db.Exec(`INSERT INTO audit (at, actor, action, target, from_addr, detail) VALUES ($1, 'a', 'b', 'c', 'd', '')`, i); err != nil {
			t.Fatal(err)
		}
		db.Close()
		upgraded(t, path, noon.Add(time.Duration(3+i)*time.Hour))
	}
	if copies = copiesOf(path); len(copies) != keptCopies || !strings.HasSuffix(copies[1], noon.Add(5*time.Hour).UTC().Format("20060102-150405")) {
		t.Errorf("the copies are %q, want the last %d", copies, keptCopies)
	}
}

// Without enough space for the copy nothing changes, and the cause is a full disk.
func TestNoRoomForTheCopy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this test mounts a small disk, which needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=9m"); err != nil {
		t.Skipf("this system allows no mounts: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "old.db")
	text := must[[]byte](t)(os.ReadFile(old(t, sample(30)...)))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	before, _, err := Examine(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	o := CreateOptions{Copy: true, Now: time.Now}
	if _, err := CreateLogged(t.Context(), path, slog.New(slog.DiscardHandler), o); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "MIGRATION_COPY") {
		t.Errorf("without space: %v, want an error that says that the disk is full and what to do", err)
	}
	if got, _, err := Examine(t.Context(), path); err != nil || got != before {
		t.Errorf("then it contains %+v, %v, want %+v as before", got, err, before)
	}
	o.Copy = false
	s := must[*Store](t)(CreateLogged(t.Context(), path, slog.New(slog.DiscardHandler), o))
	s.Close()
}
