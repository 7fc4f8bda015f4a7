package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// service creates a data directory as a service leaves it.
func service(t *testing.T) (dir string, src Source) {
	t.Helper()
	dir = t.TempDir()
	st, err := store.Create(t.Context(), filepath.Join(dir, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	if err := st.SetSecretCheck(t.Context(), []byte("check")); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, secretName)
	if err := os.WriteFile(secret, []byte("the secret of this test, long enough\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, Source{Store: st, Secret: secret, Program: "1.2.3", Now: noon}
}

func book(t *testing.T, st *store.Store, from, n int) {
	t.Helper()
	recs := make([]api.Record, n)
	for i := range recs {
		recs[i] = api.Record{
			Admission: api.Admission{ID: fmt.Sprint("r", from+i), At: noon, Key: "oas_a", Model: "tiny:latest", Endpoint: "/api/chat", Class: "inference"},
			Outcome:   api.OutcomeOK, Status: 200, PromptTokens: 3, CompletionTokens: 5, Total: time.Second,
		}
	}
	if _, err := st.AddRecords(t.Context(), recs); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, src Source) (path string, m *Manifest) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "b.tar")
	m, err := Write(t.Context(), src, path)
	if err != nil {
		t.Fatal(err)
	}
	return path, m
}

// unpack restores a backup into dir.
func unpack(t *testing.T, content io.Reader, dir string) (*Unpacked, error) {
	t.Helper()
	a, err := Open(t.Context(), content)
	if err != nil {
		return nil, err
	}
	return a.Unpack(t.Context(), dir)
}

func restore(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := unpack(t, f, dir)
	if err != nil {
		t.Fatal(err)
	}
	if aside, err := u.Place(t.Context(), nil, noon); err != nil || aside != "" {
		t.Fatalf("%q, %v, want none", aside, err)
	}
}

// names returns the files below dir with their modes.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		list = append(list, fmt.Sprintf("%s %s", rel, info.Mode()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Each transaction adds ten requests and updates the rollups, so a consistent backup has a multiple of ten rows and matching rollups.
func TestABackupIsOneMoment(t *testing.T) {
	_, src := service(t)
	ctx, stop := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			book(t, src.Store, i*10, 10)
			if i == 3 {
				close(begun)
			}
		}
	}()
	<-begun
	for range 5 {
		path, m := write(t, src)
		dir := t.TempDir()
		restore(t, path, dir)
		st, err := store.Open(t.Context(), filepath.Join(dir, databaseName))
		if err != nil {
			t.Fatal(err)
		}
		all, err := st.AllStatistics(t.Context(), noon)
		st.Close()
		n := m.Contents.Requests
		if err != nil || n < 40 || n%10 != 0 {
			t.Errorf("%d rows (%v), want a multiple of 10 from 40", n, err)
		}
		if all.Total.TotalRequests != n || all.Total.PromptTokens != 3*n {
			t.Errorf("rollups of %d requests and %d tokens, want %d and %d", all.Total.TotalRequests, all.Total.PromptTokens, n, 3*n)
		}
	}
	stop()
	<-ended
}

func TestWhatIsRestoredIsWhatWasThere(t *testing.T) {
	dir, src := service(t)
	book(t, src.Store, 0, 25)
	path, m := write(t, src)
	if got := names(t, filepath.Dir(path)); !slices.Equal(got, []string{"b.tar -rw-------"}) {
		t.Errorf("files next to the backup: %q", got)
	}
	got, want := fmt.Sprintln(m.Contents.Requests, m.Contents.Keys, m.Program, m.CreatedAt, m.HasSecret()), fmt.Sprintln(25, 0, "1.2.3", noon.UTC(), true)
	if got != want {
		t.Errorf("manifest has %swant %s", got, want)
	}
	to := t.TempDir()
	restore(t, path, to)
	if got := names(t, to); !slices.Equal(got, []string{"ollama-api-service.db -rw-------", "secret.key -rw-------"}) {
		t.Errorf("restored: %q", got)
	}
	for _, name := range []string{secretName} {
		was, _ := os.ReadFile(filepath.Join(dir, name))
		is, _ := os.ReadFile(filepath.Join(to, name))
		if !bytes.Equal(was, is) || len(is) == 0 {
			t.Errorf("%s differs", name)
		}
	}
	// If SECRET_KEY is a setting, the backup has no secret.
	src.Secret = ""
	if path, m = write(t, src); m.HasSecret() {
		t.Error("the backup has a secret")
	}
	to = t.TempDir()
	restore(t, path, to)
	if _, err := os.Stat(filepath.Join(to, secretName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a secret was restored: %v, want %v", err, fs.ErrNotExist)
	}
}

func TestStreamIsTheSame(t *testing.T) {
	dir, src := service(t)
	before := names(t, dir)
	var b bytes.Buffer
	if _, err := Stream(t.Context(), src, dir, &b); err != nil {
		t.Fatal(err)
	}
	if after := names(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %q", after)
	}
	u, err := unpack(t, &b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := u.Secret(); err != nil || secret != "the secret of this test, long enough" || string(u.SecretCheck) != "check" {
		t.Errorf("%v, want %q, %q", err, "the secret of this test, long enough", "check")
	}
	u.Discard()
}

func TestAnEndedWriteLeavesNothing(t *testing.T) {
	_, src := service(t)
	book(t, src.Store, 0, 1000)
	path := filepath.Join(t.TempDir(), "b.tar")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, src, path); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if left := names(t, filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left: %q, want none", left)
	}
	// The next backup removes what a killed one left, but does not touch one that is running.
	work, err := takeWorkDir(path + ".partial")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{databaseName, databaseName + "-journal", "backup.tar"} {
		if err := os.WriteFile(work.file(name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Write(t.Context(), src, path); err == nil || !strings.Contains(err.Error(), "another backup") {
		t.Errorf("while another one runs: %v, want an error, %q in it", err, "another backup")
	}
	work.lock.Release()
	if _, err := Write(t.Context(), src, path); err != nil {
		t.Error(err)
	}
	if left := names(t, filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left: %q, want 1 of them", left)
	}
}

// A changed byte or a truncated file is detected before anything is changed. Only the padding between files may change.
func TestDamageIsNoticed(t *testing.T) {
	_, src := service(t)
	book(t, src.Store, 0, 300)
	path, m := write(t, src)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	try := func(content []byte) error {
		u, err := unpack(t, bytes.NewReader(content), dir)
		if err == nil {
			u.Discard()
		}
		if left := names(t, dir); len(left) > 0 {
			t.Fatalf("left: %q, want none", left)
		}
		return err
	}
	if err := try(whole); err != nil {
		t.Fatal(err)
	}
	noticed, tried := 0, 0
	for at := 300; at < len(whole); at += max(1, len(whole)/60) {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x10
		tried++
		if try(broken) != nil {
			noticed++
		} else if whole[at] != 0 {
			t.Errorf("the change of byte %d of %d was not detected, want 0", at, len(whole))
		}
		if err := try(whole[:at]); err == nil {
			t.Errorf("the end at %d of %d was not detected, want an error", at, len(whole))
		}
	}
	if noticed < tried*9/10 {
		t.Errorf("%d of %d changes detected, want at least %v", noticed, tried, tried*9/10)
	}
	if m.Bytes() < 80_000 {
		t.Errorf("a database of %d bytes tests little, want at least 80_000", m.Bytes())
	}
}

// made builds an archive with this manifest and these files, given as pairs of name and content.
func made(t *testing.T, m Manifest, files ...string) []byte {
	t.Helper()
	head, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return archive(t, append([]string{manifestName, string(head)}, files...)...)
}

func archive(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := enter(w, files[i], int64(len(files[i+1])), noon); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) File {
	sum := sha256.Sum256([]byte(content))
	return File{name, int64(len(content)), hex.EncodeToString(sum[:])}
}

func TestForeignArchives(t *testing.T) {
	_, src := service(t)
	good, m := write(t, src)
	raw, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	database := string(raw[bytes.Index(raw, []byte("SQLite format 3\x00")):][:m.Files[0].Size])
	newer := otherDatabase(t, database, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	unbound := otherDatabase(t, database, `DELETE FROM meta`)
	fewer := *m
	fewer.Contents.Keys = 7
	is := func(files ...File) Manifest {
		return Manifest{Format: format, FormatVersion: formatVersion, Program: "1.2.3", Contents: m.Contents, Files: files}
	}
	format2 := is()
	format2.FormatVersion, format2.Program = 2, "9.9.9"
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"nothing":           {nil, "not a backup of this program"},
		"text":              {[]byte(strings.Repeat("no archive ", 200)), "not a backup of this program"},
		"a database":        {[]byte(database), "not a backup of this program"},
		"another archive":   {archive(t, "readme.txt", "hello"), "not a backup of this program"},
		"another manifest":  {archive(t, manifestName, `{"format":"docker"}`), "not a backup of this program"},
		"no JSON":           {archive(t, manifestName, `{`), "not a backup of this program"},
		"a newer format":    {made(t, format2), "9.9.9"},
		"no files":          {made(t, is()), "unexpected files"},
		"a path":            {made(t, is(file("../x", "y")), "../x", "y"), "unexpected files"},
		"a third file":      {made(t, is(file(databaseName, database), file(secretName, "x"), file("more", "x")), databaseName, database, secretName, "x", "more", "x"), "unexpected files"},
		"a large secret":    {made(t, is(file(databaseName, database), File{secretName, 1 << 30, ""})), "unexpected files"},
		"another name":      {made(t, is(file(databaseName, "x")), "../../"+databaseName, "x"), "does not match its manifest"},
		"another size":      {made(t, is(file(databaseName, "xy")), databaseName, "x"), "does not match its manifest"},
		"another content":   {made(t, is(file(databaseName, "x")), databaseName, "y"), "checksum"},
		"more than listed":  {made(t, is(file(databaseName, database)), databaseName, database, "more", "x"), "more than its manifest"},
		"no database in it": {made(t, is(file(databaseName, "no database at all")), databaseName, "no database at all"), "not a database"},
		"a newer schema":    {made(t, is(file(databaseName, newer)), databaseName, newer), "newer version"},
		"another count":     {made(t, fewer, databaseName, database, secretName, "the secret of this test, long enough\n"), "the number of keys"},
		"no secret check":   {made(t, is(file(databaseName, unbound)), databaseName, unbound), "has no SECRET_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := unpack(t, bytes.NewReader(c.content), dir)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("left: %q, want none", left)
			}
		})
	}
}

// otherDatabase returns a database that a statement has changed.
func otherDatabase(t *testing.T, content, statement string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	changed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(changed)
}

func TestWhatWasThereIsSetAside(t *testing.T) {
	_, src := service(t)
	book(t, src.Store, 0, 25)
	path, _ := write(t, src)
	dir, old := service(t)
	book(t, old.Store, 0, 3)
	old.Store.Close()
	segment := filepath.Join(t.TempDir(), "0000000000000007.journal")
	if err := os.WriteFile(segment, []byte("rows of the old database"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := unpack(t, f, dir)
	if err != nil {
		t.Fatal(err)
	}
	aside, err := u.Place(t.Context(), []string{segment}, noon)
	if err != nil || aside != filepath.Join(dir, "replaced-20261125-120000.000") {
		t.Fatalf("%q, %v", aside, err)
	}
	want := []string{"0000000000000007.journal -rw-------", "ollama-api-service.db -rw-------", "secret.key -rw-------"}
	if got := names(t, aside); !slices.Equal(got, want) {
		t.Errorf("moved aside: %q", got)
	}
	for at, n := range map[string]int64{dir: 25, aside: 3} {
		if c, _, err := store.Examine(t.Context(), filepath.Join(at, databaseName)); err != nil || c.Requests != n {
			t.Errorf("%s: %+v, %v, want %v", at, c, err, n)
		}
	}
}

// If the files cannot be moved aside, nothing changes.
func TestSetAsideIsAllOrNothing(t *testing.T) {
	dir, src := service(t)
	src.Store.Close()
	before := names(t, dir)
	database := filepath.Join(dir, databaseName)
	err := setAside([]string{database, filepath.Join(dir, secretName), filepath.Join(dir, "absent")}, database, filepath.Join(dir, "aside"))
	if after := names(t, dir); err == nil || !slices.Equal(before, after) {
		t.Errorf("%v: %q, was %q", err, after, before)
	}
}
