package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// readOnly mounts dir read-only at another path.
func readOnly(t *testing.T, dir string) string {
	t.Helper()
	needRoot(t)
	at := filepath.Join(t.TempDir(), "readonly")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(dir, at, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("this system allows no mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Mount("", at, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return at
}

// Commands that only read work on a data directory that is mounted read-only: of a service that has stopped, was killed, or runs on
// another mount of the same directory. Commands that write fail and say why.
func TestReadOnlyDataDirectory(t *testing.T) {
	dir := t.TempDir()
	serving := func() *launched {
		p := launch(t, []string{"DATA_DIR=" + dir}, nil, "serve")
		p.line(`"msg":"listening"`)
		return p
	}
	create := func(name string) {
		launch(t, []string{"DATA_DIR=" + dir}, nil, "keys", "create", "--name", name).exit(exitOK)
	}
	p := serving()
	create("before the stop")
	p.stop()
	if _, err := os.Stat(filepath.Join(dir, databaseName+"-wal")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a stopped service leaves a log: %v, want %v", err, fs.ErrNotExist)
	}
	at := readOnly(t, dir)
	check := func(state string, keys ...string) {
		t.Helper()
		environ := []string{"DATA_DIR=" + at}
		for _, args := range [][]string{{"stats"}, {"keys", "list"}, {"backup", filepath.Join(t.TempDir(), "b.tar")}, {"backup", "-"}} {
			out, errs, exit := call(t, environ, args...)
			if exit != exitOK {
				t.Errorf("%s: %q: exit %d: %s, want %v", state, args, exit, errs, exitOK)
			}
			for _, name := range keys {
				if args[0] == "keys" && !strings.Contains(out, name) {
					t.Errorf("%s: the list has no key %q: %s", state, name, out)
				}
			}
			if args[0] == "backup" && args[1] != "-" {
				restored := t.TempDir()
				_, errs, exit := call(t, []string{"DATA_DIR=" + restored}, "restore", args[1])
				list, _, _ := call(t, []string{"DATA_DIR=" + restored}, "keys", "list")
				if exit != exitOK || !strings.Contains(list, keys[len(keys)-1]) {
					t.Errorf("%s: restored with exit %d: %s%s, want the key %q", state, exit, errs, list, keys[len(keys)-1])
				}
			}
		}
		fails(t, environ, exitFailure, []string{"read-only"}, "keys", "create", "--name", "x")
	}
	check("stopped", "First admin", "before the stop")

	p = serving()
	create("while it serves")
	check("serving", "before the stop", "while it serves")
	_ = p.Process.Kill()
	<-p.ended
	if info, err := os.Stat(filepath.Join(dir, databaseName+"-wal")); err != nil || info.Size() == 0 {
		t.Fatalf("a killed service leaves no log: %v, want not 0", err)
	}
	check("killed", "before the stop", "while it serves")
}

// health returns the answer of /health and the status of readiness.
func (p *launched) health(admin bool) (h struct {
	Status, Hint string
	Journal      *struct {
		Error string `json:"journal_error"`
		Lost  int    `json:"rows_lost"`
	}
},
) {
	p.Helper()
	m := regexp.MustCompile(`"url":"([^"]+)"`).FindStringSubmatch(p.line(`"msg":"listening"`))
	req, err := http.NewRequestWithContext(p.Context(), "GET", m[1]+"/health", nil)
	if err != nil {
		p.Fatal(err)
	}
	if admin {
		req.Header.Set("Authorization", "Bearer "+testAdmin)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	if err := json.NewDecoder(res.Body).Decode(&h); err != nil {
		p.Fatal(err)
	}
	return h
}

// A disk that fills up while the service is idle is reported, and so is its recovery.
func TestHealthTellsOfAFullDisk(t *testing.T) {
	dir := tmpfs(t, "32m")
	ollama := ollamatest.Start(t).URL
	p := launch(t, []string{"DATA_DIR=" + dir, "ADMIN_API_KEY=" + testAdmin, "OLLAMA_BASE_URL=" + ollama}, nil, "serve")
	if h := p.health(true); h.Status != "healthy" || h.Hint != "" {
		t.Fatalf("health is %+v, want healthy without a hint", h)
	}
	free := fill(t, dir)
	p.line(`"level":"ERROR".*DATA_DIR cannot be written.*no space`)
	if h := p.health(true); h.Status != "degraded" || !strings.Contains(h.Hint, "no space") || h.Journal.Error == "" {
		t.Errorf("health of a full disk is %+v, want degraded with its cause", h)
	}
	if h := p.health(false); h.Status != "degraded" || h.Hint != "" {
		t.Errorf("health without a key is %+v, want degraded and no more", h)
	}
	free()
	p.line("DATA_DIR can be written again")
	if h := p.health(true); h.Status != "healthy" {
		t.Errorf("health is %+v after space was freed, want healthy", h)
	}
	p.stop()
}
