package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// npmProject returns a directory with a package.json, and installs the packages of its lock file if they are missing.
func npmProject(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatal("npm is missing: apt-get install -y nodejs npm")
	}
	lock, err := os.Stat(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if there, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err == nil && !there.ModTime().Before(lock.ModTime()) {
		return dir
	}
	args := []string{"ci"}
	if name == "agents" { // as in scripts/test.sh
		args = []string{"install", "--no-save"}
	}
	install := exec.CommandContext(t.Context(), "npm", append(args, "--no-audit", "--no-fund", "--loglevel=error")...)
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm %s: %v\n%s", args[0], err, out)
	}
	return dir
}

// node returns a command that runs a script of a project or a tool of its packages.
func node(t *testing.T, dir string, env []string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The service contains exactly the libraries of the lock file.
func TestTheEmbeddedLibrariesAreThoseOfTheirPackages(t *testing.T) {
	t.Parallel()
	if out, err := node(t, npmProject(t, "pages"), nil, "vendor.mjs", "--check"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// An OpenAPI linter finds no fault in the document of the running service.
func TestTheLinterFindsNothing(t *testing.T) {
	t.Parallel()
	dir := npmProject(t, "pages")
	s := serve(t)
	file := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(file, []byte(call(t, "GET", s.URL+"/openapi.json", "", "").want(t, 200).Body), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := node(t, dir, []string{"REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true"},
		filepath.Join("node_modules", "@redocly", "cli", "bin", "cli.js"), "lint", "--format=stylish", "--max-problems=100", file)
	if err != nil || strings.Contains(out, "warning") && !strings.Contains(out, "Deprecation warning") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A person opens the pages in a browser, enters a key and tries calls. A stream is shown while it arrives.
func TestTheDocumentationPages(t *testing.T) {
	t.Parallel()
	dir := npmProject(t, "pages")
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install -y chromium")
	}
	shots := os.Getenv("SCREENSHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil)
	b := &browser{t: t, fake: fake, gates: map[string]chan struct{}{}, said: map[string]string{}}

	ctx, cancel := context.WithTimeout(t.Context(), 16*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "drive.mjs")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "BASE_URL=" + s.URL, "KEY=" + s.makeKey(t, "").Secret, "SHOTS=" + shots, "CHROMIUM=" + chromium}
	dieWithTests(cmd)
	errors, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errors.Close()
	cmd.Stderr = errors
	if b.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.arm("/api/chat", "/v1/chat/completions", "/api/generate")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(out); in.Scan(); {
		if word, ok := strings.CutPrefix(in.Text(), ">> "); ok {
			b.answer(word)
		} else {
			t.Log(in.Text())
		}
	}
	if err := cmd.Wait(); err != nil || !b.done {
		t.Fatalf("%v\n%s", err, printed(errors.Name()))
	}
	want := fmt.Sprintf("%q", strings.TrimSpace(ollamatest.Text(3)))
	for _, path := range []string{"/api/chat", "/v1/chat/completions"} {
		if b.said[path] != want {
			t.Errorf("%s: the page showed %s, Ollama sent %s", path, b.said[path], want)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(shots, "*.png")); len(found) < 12 {
		t.Errorf("%d screenshots", len(found))
	}
}

// browser is the Go side of drive.mjs.
type browser struct {
	t     *testing.T
	fake  *ollamatest.Server
	in    io.Writer
	gates map[string]chan struct{}
	said  map[string]string
	done  bool
}

// arm makes the next answers on the paths wait before each piece.
func (b *browser) arm(paths ...string) {
	for _, path := range paths {
		gate := make(chan struct{})
		b.gates[path] = gate
		b.fake.Script("POST", path, ollamatest.Answer{Tokens: 3, Gate: gate})
	}
}

func (b *browser) answer(word string) {
	word, path, _ := strings.Cut(word, " ")
	switch word {
	case "first":
		pass(b.t, b.gates[path])
	case "rest":
		close(b.gates[path])
		b.arm(path)
	case "stopped":
		requests := b.fake.RequestsTo("POST", path)
		select {
		case <-last(requests).Closed:
		case <-time.After(patience):
			b.t.Error("Stop did not end the request at Ollama")
		}
	case "text":
		path, text, _ := strings.Cut(path, " ")
		b.said[path] = text
		return
	case "done":
		b.done = true
		return
	}
	io.WriteString(b.in, "go\n")
}
