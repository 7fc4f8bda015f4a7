package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// readmeBlock matches a fenced block of commands, with the remark before it that tells how to run it.
var readmeBlock = regexp.MustCompile("(?s)(?:<!-- ([^\n]*?) -->\n)?```(bash|python)\n(.*?)```")

// TestTheReadme runs every block of commands that the README shows, in their order and in a copy of the repository, against
// the service that one of them starts. Only the address differs.
func TestTheReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := checkout(t)
	var url string
	ran := 0
	for _, b := range readmeBlock.FindAllStringSubmatch(string(text), -1) {
		remark, language, commands := b[1], b[2], b[3]
		first, _, _ := strings.Cut(strings.TrimSpace(commands), "\n")
		if why, ok := strings.CutPrefix(remark, "not run: "); ok {
			t.Logf("not run (%s): %s", why, first)
			continue
		}
		if remark == "stays up" {
			url = startReadme(t, dir, commands)
			ran++
			continue
		}
		commands = strings.ReplaceAll(commands, "http://localhost:8000", url)
		var cmd *exec.Cmd
		if language == "python" {
			cmd = exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", commands)
		} else {
			// A refused request must fail the test, although curl itself reports success.
			cmd = exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", `curl() { command curl -sS --fail-with-body "$@"; }; `+commands)
		}
		cmd.Dir, cmd.Env = dir, readmeEnvironment(dir)
		out, err := cmd.CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) == 0 && language == "python" {
			t.Errorf("%s: %v\n%s", first, err, redact(string(out)))
		}
		ran++
	}
	if ran < 5 || url == "" {
		t.Errorf("%d blocks ran, the service is at %q: the README or its remarks cannot be parsed", ran, url)
	}
}

// checkout copies the repository's files, without those that git ignores.
func checkout(t *testing.T) string {
	t.Helper()
	list, err := exec.CommandContext(t.Context(), "git", "-C", "..", "ls-files", "-co", "--exclude-standard", "-z").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) {
			continue // removed but not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readmeEnvironment(dir string) []string {
	// The test model never stops by itself.
	env := []string{"OLLAMA_BASE_URL=" + ollamaURL, "PORT=0", "LOG_FORMAT=json", "DEFAULT_MAX_TOKENS=64"}
	for _, name := range []string{"PATH", "HOME", "GOPATH", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOFLAGS", "GOTOOLCHAIN", "GONOSUMDB", "GOSUMDB"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// startReadme runs the commands of a block that start the service, and returns its address. The service ends with the test.
func startReadme(t *testing.T, dir, commands string) string {
	t.Helper()
	s := &service{stdout: newTranscript(), ended: make(chan struct{})}
	s.cmd = exec.Command("bash", "-c", "exec "+strings.TrimSpace(commands))
	s.cmd.Dir, s.cmd.Env = dir, readmeEnvironment(dir)
	dieWithTests(s.cmd)
	s.cmd.Stdout = s.stdout
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.result = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.ended
	})
	address, err := s.stdout.find(addressLine, s.ended)
	if err != nil {
		t.Fatalf("%s does not listen: %v\n%s", strings.TrimSpace(commands), err, s.stdout.String())
	}
	return "http://" + address
}
