package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/test/ollamatest"
)

// checked is the output of serve --check --json: the exit code and, for each check, the worst result and all details.
type checked struct {
	t       *testing.T
	exit    int
	results map[string]string
	text    string
}

func check(t *testing.T, environ []string, args ...string) checked {
	t.Helper()
	out, _, exit := call(t, environ, append([]string{"serve", "--check", "--json"}, args...)...)
	var said struct {
		Exit     int       `json:"exit"`
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || said.Exit != exit || len(said.Findings) == 0 {
		t.Fatalf("exit %d, %v: %s, want %v, not 0", exit, err, out, exit)
	}
	c := checked{t, exit, map[string]string{}, out}
	for _, f := range said.Findings {
		if order := []string{"", resultOK, resultWarning, resultFailed}; slices.Index(order, f.Result) > slices.Index(order, c.results[f.Check]) {
			c.results[f.Check] = f.Result
		}
	}
	return c
}

func (c checked) want(exit int, check, result string, words ...string) {
	c.t.Helper()
	if c.exit != exit || c.results[check] != result {
		c.t.Errorf("exit %d and %s: %s, want %d and %s\n%s", c.exit, check, c.results[check], exit, result, c.text)
	}
	for _, w := range words {
		if !strings.Contains(c.text, w) {
			c.t.Errorf("got %[2]s, want it to contain %[1]q", w, c.text)
		}
	}
}

func TestCheckOfAFirstStartMakesNothing(t *testing.T) {
	ollama := ollamatest.Start(t)
	dir := t.TempDir()
	environ := []string{"DATA_DIR=" + filepath.Join(dir, "a", "b"), "OLLAMA_BASE_URL=" + ollama.URL, "PORT=0"}
	c := check(t, environ)
	c.want(0, "database", resultOK, "the first start creates it")
	c.want(0, "admin key", resultWarning)
	c.want(0, "server ollama", resultOK, "1 models")
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("the check created %v (%v), want no files", list, err)
	}
	out, errs, exit := call(t, environ, "serve", "--check")
	if exit != 0 || errs != "" || !strings.HasPrefix(out, "CHECK ") || !strings.Contains(out, "\ndata directory   ok ") {
		t.Errorf("exit %d: %s%s", exit, out, errs)
	}
}

func TestCheckFindsWhatAStartWouldMeet(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("this is not a database, but it is long enough to be recognized as something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.Rename(file, filepath.Join(other, "ollama-api-service.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pair := certificateFiles(t, t.TempDir(), "gateway.example")
	d := newDesk(t)
	for _, c := range []struct {
		environ []string
		exit    int
		check   string
		result  string
		words   []string
	}{
		{[]string{"PORT=x"}, exitUsage, "settings", resultFailed, []string{"PORT"}},
		{[]string{"HOST=0.0.0.0"}, exitOK, "settings", resultWarning, []string{"plain HTTP"}},
		{[]string{"SECRET_KEY=" + testSecret + " but another"}, exitDatabase, "secret", resultFailed, []string{"SECRET_KEY"}},
		{[]string{"DATA_DIR=" + file}, exitDatabase, "data directory", resultFailed, []string{"not a directory"}},
		{[]string{"DATA_DIR=" + filepath.Join(file, "below")}, exitDatabase, "data directory", resultFailed, nil},
		{[]string{"DATA_DIR=" + other}, exitDatabase, "database", resultFailed, []string{"not a database"}},
		{[]string{"PORT=" + strconv.Itoa(taken.Addr().(*net.TCPAddr).Port)}, exitFailure, "address", resultFailed, []string{"uses the port"}},
		{[]string{"TLS_CERT=/nowhere/cert.pem", "TLS_KEY=/nowhere/key.pem"}, exitFailure, "certificate", resultFailed, []string{"TLS_CERT"}},
		{[]string{"TLS_CERT=" + pair[0], "TLS_KEY=" + pair[1]}, exitOK, "certificate", resultWarning, []string{"gateway.example"}}, // it expires tomorrow
		{[]string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, exitOK, "server ollama", resultWarning, []string{"refused"}},
		{[]string{"ADMIN_API_KEY=" + testAdmin}, exitOK, "admin key", resultOK, nil},
	} {
		environ := append(slices.Clone(d.environ), "PORT=0", "OLLAMA_BASE_URL=http://127.0.0.1:1")
		got := check(t, append(environ, c.environ...))
		got.want(c.exit, c.check, c.result, c.words...)
		if strings.Contains(got.text, testSecret) || strings.Contains(got.text, testAdmin) {
			t.Errorf("%q: the output contains a secret, want no testSecret, no %v", c.environ, testAdmin)
		}
	}
}

// Before a restart, the running service is not a failure.
func TestCheckBesideARunningService(t *testing.T) {
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve").start(t)
	c := check(t, p.Env)
	c.want(0, "running service", resultWarning)
	c.want(0, "address", resultOK, "used by the running service")
	if p.status("/healthz") != http.StatusOK {
		t.Error("the check disturbed the running service")
	}
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	check(t, p.Env).want(0, "running service", resultOK)
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "settings.env")
	if err := os.WriteFile(file, []byte("PORT=9000\nSECRET_KEY='"+testSecret+"'\nMAX_QUEUE=5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"MAX_QUEUE=7", "HOST=0.0.0.0"}
	out, errs, exit := call(t, environ, "settings", "--env-file", file)
	if exit != 0 || !strings.HasPrefix(errs, "warning: HOST is reachable") {
		t.Errorf("exit %d: %s, want 0, %q at its start", exit, errs, "warning: HOST is reachable")
	}
	for _, want := range [][]string{
		{"SETTING", "VALUE", "FROM"},
		{"PORT", "9000", file + ":1"},
		{"SECRET_KEY", "set", file + ":2"},
		{"MAX_QUEUE", "7", "environment, which overrides " + file + ":3"},
		{"MAX_QUEUE_WAIT", "10m", "default"},
	} {
		if !strings.Contains(squeezed(out), strings.Join(want, " ")+"\n") {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, testSecret) {
		t.Error("the output contains a secret")
	}
	out, _, exit = call(t, environ, "settings", "--json", "--env-file", file)
	var said struct {
		Settings []config.InForce
		Warnings []string
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || exit != 0 || len(said.Warnings) != 1 || said.Settings[0].Value != "set" {
		t.Errorf("exit %d, %v: %s, want 0, 1 of them, %q", exit, err, out, "set")
	}
	if out, errs, exit := call(t, environ, "settings", "--quiet", "--env-file", file); exit != 0 || out != "" || errs != "" {
		t.Errorf("exit %d: %s%s, want 0, none, none", exit, out, errs)
	}
	fails(t, []string{"MAX_QUEUE=many"}, exitUsage, []string{"MAX_QUEUE"}, "settings", "--quiet")
	fails(t, nil, exitUsage, []string{"--check"}, "serve", "--json")
}

// squeezed returns a table with one space between its columns.
func squeezed(text string) string {
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}
