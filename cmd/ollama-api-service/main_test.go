package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/store"
)

const testSecret = "a secret for these tests, long enough"

// desk is a data directory as serve leaves it, with the settings that point to it.
type desk struct {
	*testing.T
	dir     string
	environ []string
	store   *store.Store
	secret  auth.Secret
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{T: t, dir: t.TempDir(), secret: auth.NewSecret(testSecret, "")}
	d.environ = []string{"DATA_DIR=" + d.dir, "SECRET_KEY=" + testSecret}
	var err error
	if d.store, err = store.Create(t.Context(), filepath.Join(d.dir, "ollama-api-service.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.store.Close() })
	if err := d.store.SetSecretCheck(t.Context(), d.secret.CheckMAC()); err != nil {
		t.Fatal(err)
	}
	return d
}

// call runs the program in an empty working directory, with further settings.
func call(t *testing.T, environ []string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	exit = run(t.Context(), args, environ, &out, &errs)
	return out.String(), errs.String(), exit
}

func (d *desk) run(args ...string) string {
	d.Helper()
	out, errs, exit := call(d.T, d.environ, args...)
	if exit != exitOK {
		d.Fatalf("%q: exit %d: %s, want %v", args, exit, errs, exitOK)
	}
	return out
}

// fails checks the exit code, and that the only line contains each of the words.
func (d *desk) fails(exit int, words []string, args ...string) {
	d.Helper()
	fails(d.T, d.environ, exit, words, args...)
}

func fails(t *testing.T, environ []string, exit int, words []string, args ...string) {
	t.Helper()
	out, errs, got := call(t, environ, args...)
	if got != exit || out != "" {
		t.Errorf("%q: exit %d with %q, want %d with nothing: %s", args, got, out, exit, errs)
	}
	if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "ollama-api-service: ") {
		t.Errorf("%q: not one line: %q, want 1, %q at its start", args, errs, "ollama-api-service: ")
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			t.Errorf("%q: the line does not contain %q: %q, want %v in it", args, w, errs, w)
		}
	}
}

// make creates a key and returns its text and preview.
func (d *desk) make(args ...string) (text, preview string) {
	d.Helper()
	text = strings.TrimSpace(d.run(append([]string{"keys", "create"}, args...)...))
	preview, ok := auth.Parse(text)
	if !ok {
		d.Fatalf("standard output is %q, want only the key", text)
	}
	return text, preview
}

func (d *desk) key(preview string) store.StoredKey {
	d.Helper()
	k, err := d.store.Key(d.Context(), preview)
	if err != nil {
		d.Fatal(err)
	}
	return k
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"bogus"},
		{"kesy"},
		{"keys", "bogus"},
		{"--bogus"},
		{"keys", "list", "--bogus"},
		{"keys", "show"},
		{"keys", "revoke", "a", "b"},
		{"stats", "extra"},
		{"serve", "extra"},
		{"serve", "--demo=maybe"},
		{"healthcheck", "x"},
		{"version", "x"},
	} {
		fails(t, nil, exitUsage, []string{"--help"}, args...)
	}
}

func TestHelpTeaches(t *testing.T) {
	for _, args := range [][]string{
		{"--help"},
		{"serve", "--help"},
		{"keys"},
		{"keys", "create", "--help"},
		{"keys", "change", "--help"},
		{"keys", "rotate", "--help"},
		{"keys", "revoke", "--help"},
		{"keys", "show", "--help"},
		{"stats", "--help"},
		{"queue", "--help"},
		{"healthcheck", "--help"},
	} {
		out, errs, exit := call(t, nil, args...)
		if exit != exitOK || errs != "" || !strings.Contains(out, "Examples:\n  ") {
			t.Errorf("%q: exit %d, %s, help without examples:\n%s", args, exit, errs, out)
		}
	}
}

func TestSettingsDecideTheExit(t *testing.T) {
	fails(t, []string{"PORT=99999"}, exitUsage, []string{"PORT"}, "keys", "list")
	fails(t, []string{"HOST=0.0.0.0"}, exitUsage, []string{"HOST", "--demo"}, "serve", "--demo")
	fails(t, []string{"HOST=0.0.0.0"}, exitUsage, []string{"HOST", "--demo"}, "--demo")
	fails(t, nil, exitUsage, []string{"--env-file", "absent.env"}, "keys", "list", "--env-file", "absent.env")
	path := filepath.Join(t.TempDir(), "my.env")
	if err := os.WriteFile(path, []byte("PORT=8000\nRATE_LIMT=5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, nil, exitUsage, []string{"RATE_LIMT", "line 2", path}, "--env-file", path, "stats")
}

func TestOnlyServeMakesADatabase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nothing", "here")
	for _, args := range [][]string{{"keys", "list"}, {"keys", "create", "--name", "x"}, {"stats"}} {
		fails(t, []string{"DATA_DIR=" + dir}, exitUsage, []string{"DATA_DIR", filepath.Join(dir, "ollama-api-service.db")}, args...)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files were created: %v, want %v", err, os.ErrNotExist)
	}
	// A relative directory is printed as an absolute path.
	_, errs, _ := call(t, []string{"DATA_DIR=here"}, "stats")
	if wd, _ := os.Getwd(); !strings.Contains(errs, filepath.Join(wd, "here")) {
		t.Errorf("no absolute path in %q", errs)
	}
}

func TestWrongSecretOrDatabase(t *testing.T) {
	d := newDesk(t)
	_, preview := d.make("--name", "x")
	const other = "another secret of sufficient length"
	for _, args := range [][]string{{"keys", "list"}, {"keys", "show", preview}, {"keys", "create", "--name", "y"}, {"keys", "revoke", preview}} {
		d.environ = []string{"DATA_DIR=" + d.dir, "SECRET_KEY=" + other}
		d.fails(exitDatabase, []string{"SECRET_KEY", "SECRET_KEY_PREVIOUS"}, args...)
		d.environ = []string{"DATA_DIR=" + d.dir}
		d.fails(exitUsage, []string{"secret.key"}, args...)
	}
	if d.key(preview).RevokedAt != nil {
		t.Error("the key was revoked under a wrong secret")
	}
	// A pending change of the secret is not an error.
	d.environ = []string{"DATA_DIR=" + d.dir, "SECRET_KEY=" + other, "SECRET_KEY_PREVIOUS=" + testSecret}
	d.run("keys", "list")
	// Without SECRET_KEY, the generated secret is used.
	if err := os.WriteFile(filepath.Join(d.dir, "secret.key"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.environ = []string{"DATA_DIR=" + d.dir}
	d.run("keys", "list")

	// A database whose first start ended before its secret was stored.
	fresh := t.TempDir()
	st, err := store.Create(t.Context(), filepath.Join(fresh, "ollama-api-service.db"))
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	fails(t, []string{"DATA_DIR=" + fresh, "SECRET_KEY=" + testSecret}, exitDatabase, []string{"serve"}, "keys", "list")

	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "ollama-api-service.db"), []byte(strings.Repeat("this is not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"keys", "list"}, {"stats"}} {
		fails(t, []string{"DATA_DIR=" + broken}, exitDatabase, []string{broken}, args...)
	}
}

func TestHealthcheck(t *testing.T) {
	status := http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			t.Errorf("the request is for %s, want %q", r.URL.Path, "/healthz")
		}
		w.WriteHeader(status)
	}))
	defer s.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	for _, host := range []string{"127.0.0.1", "0.0.0.0"} {
		out, errs, exit := call(t, []string{"HOST=" + host, "PORT=" + port}, "healthcheck")
		if exit != exitOK || !strings.HasPrefix(out, "ok: ") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit %d: %q %q, want %v, %q at its start, 1", host, exit, out, errs, exitOK, "ok: ")
		}
	}
	status = http.StatusServiceUnavailable
	fails(t, []string{"PORT=" + port}, exitFailure, []string{"503"}, "healthcheck")
	s.Close()
	fails(t, []string{"PORT=" + port}, exitFailure, []string{"PORT", "/healthz"}, "healthcheck")
	fails(t, []string{"PORT=0"}, exitUsage, []string{"PORT"}, "healthcheck")
}

func TestVersion(t *testing.T) {
	before := version
	t.Cleanup(func() { version = before })
	version = "1.2.3"
	out, _, exit := call(t, nil, "version")
	if exit != exitOK || !regexp.MustCompile(`^ollama-api-service 1\.2\.3 \(go1\..*, .*/.*, SQLite driver .+\)\n$`).MatchString(out) {
		t.Errorf("exit %d: %q", exit, out)
	}
	out, _, _ = call(t, nil, "version", "--json")
	var v map[string]string
	if err := json.Unmarshal([]byte(out), &v); err != nil || v["version"] != "1.2.3" || v["go"] == "" || v["sqlite_driver"] == "" {
		t.Errorf("%v: %s, want %q, a text, a text", err, out, "1.2.3")
	}
	if version = ""; buildVersion() == "" {
		t.Error("no version without one from the linker")
	}
}
