package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

var noon = time.Date(2026, 11, 24, 12, 0, 30, 250e6, time.UTC)

func create(t testing.TB) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data", "books.db")
	s, err := Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, path
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func wantCode(t *testing.T, err error, code api.Code) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error is %v, want code %s", err, code)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestCreateIsPrivate(t *testing.T) {
	s, path := create(t)
	if err := s.SetSecretCheck(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{filepath.Dir(path): 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != mode {
			t.Errorf("%s has mode %o, want %o", filepath.Base(name), got, mode)
		}
	}
}

func TestPragmas(t *testing.T) {
	s, _ := create(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		var got string
		if err := s.writer.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s (%v), want %s", pragma, got, err, want)
		}
	}
	if _, err := s.reader.Exec(`DELETE FROM meta`); err == nil {
		t.Error("a reader can write")
	}
}

func TestOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?mode=memory#%41;ü&", "books.db")
	s, err := Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetSecretCheck(t.Context(), []byte("here")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if mac, err := open(t, path).SecretCheck(t.Context()); err != nil || string(mac) != "here" {
		t.Fatal(string(mac), err)
	}
}

func TestOpenNeverMakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "books.db")
	_, err := Open(t.Context(), path)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Fatalf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("Open created the directory")
	}
}

func TestForeignFiles(t *testing.T) {
	other := func(statement string) func(string) error {
		return func(path string) error {
			db, err := sql.Open("sqlite", dsn(path))
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.Exec(statement)
			return err
		}
	}
	text := func(s string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(s), 0o600) }
	}
	versions := `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY, version_id INTEGER, is_applied INTEGER, tstamp TIMESTAMP);`
	for _, c := range []struct {
		name, create, open string // the errors of Create and Open; "" means success
		make               func(string) error
	}{
		{"text", "is not a database", "is not a database", text(strings.Repeat("these are notes\n", 500))},
		{"short", "is not a database", "is not a database", text("notes")},
		{"damaged", "is not a database", "is not a database", text("SQLite format 3\x00" + strings.Repeat("\xff", 8000))},
		{"other", "of another program", "of another program", other(`CREATE TABLE songs (title TEXT)`)},
		{"newer", "newer version", "newer version", other(versions + `INSERT INTO goose_db_version VALUES (1, 9999, 1, NULL)`)},
		{"older", "", "run `ollama-api-service serve` once to upgrade it", other(versions + `INSERT INTO goose_db_version VALUES (1, 0, 1, '2026-11-24 12:00:00')`)},
		{"empty", "", "run `ollama-api-service serve` once to upgrade it", text("")},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "books.db")
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			before := must[[]byte](t)(os.ReadFile(path))
			says := func(err error, want string) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("error is %v, want one with %q and the path", err, want)
				}
				if after := must[[]byte](t)(os.ReadFile(path)); !bytes.Equal(before, after) {
					t.Fatal("the file was changed")
				}
			}
			_, err := Open(t.Context(), path)
			says(err, c.open)
			s, err := Create(t.Context(), path)
			if c.create != "" {
				says(err, c.create)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			open(t, path)
		})
	}
}

func TestCreateAtOneTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "books.db")
	var all sync.WaitGroup
	failed := make(chan error, 8)
	for range cap(failed) {
		all.Go(func() {
			s, err := Create(t.Context(), path)
			if err != nil {
				failed <- err
				return
			}
			defer s.Close()
			if _, err := s.Keys(t.Context()); err != nil {
				failed <- err
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

func TestSecretCheck(t *testing.T) {
	s, path := create(t)
	if mac, err := s.SecretCheck(t.Context()); mac != nil || err != nil {
		t.Fatal(mac, err)
	}
	for _, want := range []string{"first", "second"} {
		if err := s.SetSecretCheck(t.Context(), []byte(want)); err != nil {
			t.Fatal(err)
		}
		if mac, err := open(t, path).SecretCheck(t.Context()); string(mac) != want || err != nil {
			t.Fatal(string(mac), err)
		}
	}
}

func TestDataVersion(t *testing.T) {
	ours, path := create(t)
	theirs := open(t, path)
	version := func() int64 { t.Helper(); return must[int64](t)(ours.DataVersion(t.Context())) }
	before := version()
	for i := range 3 {
		if err := ours.CreateKey(t.Context(), user(fmt.Sprint("ours", i)), []byte("m"), by("cli")); err != nil {
			t.Fatal(err)
		}
		must[[]api.Key](t)(theirs.Keys(t.Context()))
		if v := version(); v != before {
			t.Fatalf("the store's own commit changed the version from %d to %d", before, v)
		}
	}
	for i := range 3 {
		if err := theirs.CreateKey(t.Context(), user(fmt.Sprint("theirs", i)), []byte("m"), by("cli")); err != nil {
			t.Fatal(err)
		}
		v := version()
		if v == before {
			t.Fatal("a commit of another store did not change the version")
		}
		if again := version(); again != v {
			t.Fatal("the version changed without a commit")
		}
		before = v
	}
	// A change that changes nothing is not a commit either.
	if _, err := theirs.ChangeKey(t.Context(), "theirs0", api.KeyPatch{}, by("cli")); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if v := version(); v != before {
		t.Fatal("opening without a change changed the version")
	}
}

func TestTwoWriters(t *testing.T) {
	one, path := create(t)
	two := open(t, path)
	const writers, each = 25, 2
	var all sync.WaitGroup
	for i := range writers {
		for n, s := range []*Store{one, two} {
			all.Go(func() {
				for j := range each {
					id := fmt.Sprintf("%d-%d-%d", n, i, j)
					if n, err := s.AddRecords(t.Context(), []api.Record{record(id, "oas_a", noon)}); n != 1 || err != nil {
						t.Errorf("added %d: %v", n, err)
						return
					}
					if _, err := s.Statistics(t.Context(), "oas_a", noon); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	all.Wait()
	for _, s := range []*Store{one, two} {
		got := must[api.Statistics](t)(s.Statistics(t.Context(), "oas_a", noon))
		if got.TotalRequests != 2*writers*each || got.Last24h != 2*writers*each {
			t.Errorf("%d in total and %d in a day, want %d", got.TotalRequests, got.Last24h, 2*writers*each)
		}
	}
}

// A transaction that reads before it writes needs the lock from its beginning: SQLite refuses to upgrade a snapshot that another commit
// made stale, and waiting does not help (SQLITE_BUSY_SNAPSHOT).
func TestTwoChangers(t *testing.T) {
	one, path := create(t)
	two := open(t, path)
	add(t, one, user("oas_a"))
	var all sync.WaitGroup
	for n, s := range []*Store{one, two} {
		all.Go(func() {
			for i := range 20 {
				name := fmt.Sprint(n, "-", i)
				if _, err := s.ChangeKey(t.Context(), "oas_a", patch(t, `{"name":"`+name+`"}`), by("cli")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if log := audit(t, one, 1000); len(log) != 41 {
		t.Errorf("%d audit entries, want 41", len(log))
	}
}

func TestWaitsForAnothersTransaction(t *testing.T) {
	one, path := create(t)
	two := open(t, path)
	held := make(chan struct{})
	release := make(chan struct{})
	done := make(chan error, 2)
	go func() {
		done <- one.write(context.Background(), func(ctx context.Context, tx *sql.Tx) error {
			close(held)
			<-release
			return nil
		})
	}()
	<-held
	go func() { done <- two.SetSecretCheck(context.Background(), []byte("x")) }()
	// A reader does not wait for a writer.
	if _, err := two.Keys(t.Context()); err != nil {
		t.Error(err)
	}
	close(release)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestFailureIsUnavailable(t *testing.T) {
	s, _ := create(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.AddRecords(gone, []api.Record{record("1", "oas_a", noon)})
	wantCode(t, err, api.CodeUnavailable)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the cause is lost: %v", err)
	}
	s.Close()
	_, err = s.Key(t.Context(), "oas_a")
	wantCode(t, err, api.CodeUnavailable)
	wantCode(t, s.SetSecretCheck(t.Context(), nil), api.CodeUnavailable)
}

// audit returns the newest n entries of the audit table.
func audit(t *testing.T, s *Store, n int) []AuditEntry {
	t.Helper()
	list, _, err := s.Audit(t.Context(), AuditQuery{Limit: n})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
