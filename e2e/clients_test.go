package e2e

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ollama runs the real ollama command with the key in the address, its only way to carry one.
func (s *service) ollama(t *testing.T, key string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, ollamaTool, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OLLAMA_HOST=" + s.URL + "/k/" + key, "TERM=dumb"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestTheOllamaCommand(t *testing.T) {
	s := serve(t)
	key := s.makeKey(t, "").Secret
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"list"}, "tiny:latest"},
		{[]string{"run", "tiny", "the sea"}, ""},
		{[]string{"ps"}, ":latest"}, // names that share their weights share a runner, and its first name
		{[]string{"show", "tiny"}, "llama"},
	} {
		out, err := s.ollama(t, key, c.args...)
		if err != nil || !strings.Contains(out, c.says) || strings.TrimSpace(out) == "" {
			t.Errorf("ollama %v: %v\n%s", c.args, err, out)
		}
	}
	if st := s.stats(t, key, 1); st.ByEndpoint["/api/generate"] != 1 {
		t.Errorf("books %+v", st)
	}
	// Stopping a model unloads it for everybody; whether or not a user may, the answer is one to read.
	if out, err := s.ollama(t, key, "stop", "tiny"); err != nil && !readable(out) {
		t.Errorf("ollama stop: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"pull", "tiny"}, {"rm", "tiny"}, {"cp", "tiny", "other"}} {
		out, err := s.ollama(t, key, args...)
		if err == nil || !readable(out) || !strings.Contains(strings.ToLower(out), "admin") {
			t.Errorf("ollama %v with a user's key: %v\n%s", args, err, out)
		}
	}
	if out, err := s.ollama(t, s.Admin, "cp", "tiny", "copied"); err != nil {
		t.Errorf("ollama cp with an admin's key: %v\n%s", err, out)
	}
	if out, err := s.ollama(t, s.Admin, "rm", "copied"); err != nil {
		t.Errorf("ollama rm with an admin's key: %v\n%s", err, out)
	}
	out, err := s.ollama(t, "oas_0000000000_00000000000000000000000000000000000000", "list")
	if err == nil || strings.TrimSpace(out) == "" {
		t.Errorf("with a wrong key: %v, %q", err, out)
	}
	if strings.Contains(s.stdout.String()+s.stderr.String(), key) {
		t.Error("the key of the path is in the log")
	}
}

// readable says that the command shows a sentence and not only a number or a crash.
func readable(out string) bool {
	return strings.Contains(out, "Error: ") && len(strings.Fields(out)) > 3 && !strings.Contains(out, "panic") && !strings.Contains(out, "goroutine")
}

// An admin can bring a model in with the stock command: blobs go up and create reports its progress.
func TestTheOllamaCommandCreatesAModel(t *testing.T) {
	s := serve(t)
	cmd := exec.CommandContext(t.Context(), ollamaTool, "create", "brought", "-f", "Modelfile")
	cmd.Dir = filepath.Join("..", "testdata")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OLLAMA_HOST=" + s.URL + "/k/" + s.Admin}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("success")) {
		t.Fatalf("%v\n%s", err, out)
	}
	call(t, "POST", s.URL+"/api/generate", s.Admin, strings.Replace(oneToken, "tiny", "brought", 1)).want(t, http.StatusOK)
	call(t, "DELETE", s.URL+"/api/delete", s.Admin, `{"model":"brought"}`).want(t, http.StatusOK)
}

func TestTheJavaScriptClients(t *testing.T) {
	dir, err := filepath.Abs("clients")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatal("node is missing: apt-get install -y nodejs npm")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "openai")); err != nil {
		ci := exec.CommandContext(t.Context(), "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
		ci.Dir = dir
		if out, err := ci.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	s := serve(t)
	key := s.makeKey(t, "").Secret
	spent := s.makeKey(t, `,"rate_limit":1`).Secret
	call(t, "POST", s.URL+"/api/generate", spent, oneToken).want(t, http.StatusOK)
	for _, script := range []string{"ollama.mjs", "openai.mjs"} {
		t.Run(script, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "node", script)
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "BASE_URL=" + s.URL, "KEY=" + key, "SPENT_KEY=" + spent, "MODEL=tiny"}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
