package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/books"
	"ollama-api-service/internal/config"
)

// generated replaces the desk's secret by one that the service generated.
func (d *desk) generated() {
	d.Helper()
	if err := os.WriteFile(config.SecretPath(d.dir), []byte(testSecret+"\n"), 0o600); err != nil {
		d.Fatal(err)
	}
	d.environ = []string{"DATA_DIR=" + d.dir}
}

func TestBackupAndRestore(t *testing.T) {
	d := newDesk(t)
	d.generated()
	_, preview := d.make("--name", "kept")
	file := filepath.Join(t.TempDir(), "b.tar")
	if out := d.run("backup", file); !regexp.MustCompile(`^Backed up to .*b\.tar: 1 key and 0 requests, \d+\.\d kB\.\n$`).MatchString(out) {
		t.Errorf("said %q", out)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v, want mode %#o", info, err, 0o600)
	}
	before, _ := os.ReadFile(file)
	d.fails(exitUsage, []string{file, "--force"}, "backup", file)
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
		t.Error("a refused backup changed the file")
	}
	var made struct {
		File     string
		Contents struct{ Keys int64 }
	}
	if err := json.Unmarshal([]byte(d.run("backup", "--force", "--json", file)), &made); err != nil || made.File != file || made.Contents.Keys != 1 {
		t.Errorf("%+v, %v, want %v, 1", made, err, file)
	}

	to := filepath.Join(t.TempDir(), "new", "place")
	there := &desk{T: t, dir: to, environ: []string{"DATA_DIR=" + to}}
	if out := there.run("restore", file); !regexp.MustCompile(`^Restored .*b\.tar of .* \(version .*\) into ` + to + `: 1 key and 0 requests\.\nNow start the service\.\n$`).MatchString(out) {
		t.Errorf("said %q", out)
	}
	if out := there.run("keys", "list"); !strings.Contains(out, preview) {
		t.Errorf("keys after the restore:\n%s", out)
	}

	there.make("--name", "newer")
	there.fails(exitUsage, []string{filepath.Join(to, "ollama-api-service.db"), "--force"}, "restore", file)
	var restored struct {
		DataDir string `json:"data_dir"`
		Aside   string `json:"set_aside"`
		Needs   *bool  `json:"needs_secret_key"`
	}
	if err := json.Unmarshal([]byte(there.run("restore", "--force", "--json", file)), &restored); err != nil || restored.DataDir != to || *restored.Needs {
		t.Errorf("%+v, %v", restored, err)
	}
	if out := there.run("keys", "list", "--json"); strings.Contains(out, "newer") || !strings.Contains(out, preview) {
		t.Errorf("keys after the second restore:\n%s", out)
	}
	aside := &desk{T: t, dir: restored.Aside, environ: []string{"DATA_DIR=" + restored.Aside}}
	if out := aside.run("keys", "list"); !strings.Contains(out, "newer") {
		t.Errorf("keys set aside:\n%s", out)
	}
}

func TestBackupWithASecretOfTheSettings(t *testing.T) {
	d := newDesk(t)
	file := filepath.Join(t.TempDir(), "b.tar")
	if out := d.run("backup", file); !strings.Contains(out, "SECRET_KEY is a setting and is not in the backup") {
		t.Errorf("said %q, want %q in it", out, "SECRET_KEY is a setting and is not in the backup")
	}
	to := t.TempDir()
	there := &desk{T: t, dir: to, environ: []string{"DATA_DIR=" + to, "SECRET_KEY=another secret, which is as long as that"}}
	there.fails(exitDatabase, []string{"SECRET_KEY", "nothing was changed"}, "restore", file)
	if left, _ := os.ReadDir(to); len(left) != 1 || left[0].Name() != "journal" {
		t.Errorf("left: %v, want 1 of them, %q", left, "journal")
	}
	there.environ = []string{"DATA_DIR=" + to}
	if out := there.run("restore", file); !strings.Contains(out, "SECRET_KEY was a setting") {
		t.Errorf("said %q, want %q in it", out, "SECRET_KEY was a setting")
	}
	there.environ = d.environ
	there.run("keys", "list")
}

func TestBackupRefuses(t *testing.T) {
	d := newDesk(t)
	dir := t.TempDir()
	d.fails(exitUsage, []string{"--help"}, "backup")
	d.fails(exitUsage, []string{"is a directory"}, "backup", dir)
	d.fails(exitUsage, []string{"does not exist", filepath.Join(dir, "absent")}, "backup", filepath.Join(dir, "absent", "b.tar"))
	d.fails(exitUsage, []string{"--json"}, "backup", "--json", "-")
	fails(t, []string{"DATA_DIR=" + filepath.Join(dir, "x")}, exitUsage, []string{"DATA_DIR"}, "backup", filepath.Join(dir, "b.tar"))
	d.environ = []string{"DATA_DIR=" + d.dir, "SECRET_KEY=another secret, which is as long as that"}
	d.fails(exitDatabase, []string{"SECRET_KEY"}, "backup", filepath.Join(dir, "b.tar"))
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v, want none", left)
	}
}

func TestRestoreRefuses(t *testing.T) {
	d := newDesk(t)
	d.generated()
	dir := t.TempDir()
	file, to := filepath.Join(dir, "b.tar"), filepath.Join(dir, "a", "b")
	d.run("backup", file)
	environ := []string{"DATA_DIR=" + to}
	fails(t, environ, exitUsage, []string{"--help"}, "restore")
	fails(t, environ, exitUsage, []string{"no file", file + "x"}, "restore", file+"x")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cut": whole[:len(whole)/2], "foreign": []byte(strings.Repeat("a letter to somebody ", 100)), "empty": nil,
		"changed": bytes.Replace(whole, []byte("SQLite format 3"), []byte("SQLite format 4"), 1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		fails(t, environ, exitDatabase, []string{path, "nothing was changed"}, "restore", path)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused restore created directories: %v, want %v", err, fs.ErrNotExist)
	}
	// A service is running there.
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	journal, err := books.Hold(to)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Release()
	fails(t, environ, exitUsage, []string{"another ollama-api-service", "stop it"}, "restore", "--force", file)
}

// The manual page passes the linters of manual pages, and contains every command and setting.
func TestManual(t *testing.T) {
	out, errs, exit := call(t, nil, "man")
	if exit != exitOK || errs != "" {
		t.Fatalf("exit %d: %s, want %v, none", exit, errs, exitOK)
	}
	path := filepath.Join(t.TempDir(), "ollama-api-service.1")
	if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, lint := range [][]string{{"mandoc", "-Tlint", "-Wwarning", path}, {"man", "--warnings=all", "--local-file", "--encoding=utf8", path}} {
		cmd := exec.Command(lint[0], lint[1:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=100")
		var text, complaints bytes.Buffer
		cmd.Stdout, cmd.Stderr = &text, &complaints
		if err := cmd.Run(); err != nil || complaints.Len() > 0 || lint[0] == "mandoc" && text.Len() > 0 {
			t.Errorf("%s: %v\n%s%s", lint[0], err, complaints.String(), text.String())
		}
		if lint[0] != "man" {
			continue
		}
		for _, words := range []string{"API keys, limits and statistics in front of Ollama", "keys create --name NAME", "backup FILE", "--max-concurrent", "#MAX_QUEUE=1024", "#   openssl rand -hex 32", "secret.key"} {
			if !strings.Contains(text.String(), words) {
				t.Errorf("the manual does not contain %q, want %v in it", words, words)
			}
		}
	}
}

// Completion as a shell requests it.
func TestBashCompletes(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-o", filepath.Join(dir, programName), ".") // as a release, so that it is compiled once
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	script := `source /usr/share/bash-completion/bash_completion
source <(` + programName + ` completion bash)
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<<"$1"
case $1 in *' ') COMP_WORDS+=('') ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
__start_` + programName + `
printf '%s\n' "${COMPREPLY[@]}"`
	d := newDesk(t)
	_, preview := d.make("--name", "Anna's laptop")
	for line, want := range map[string][]string{
		programName + " keys revoke oas_":      {preview},
		programName + " keys cr":               {"create"},
		programName + " ba":                    {"backup"},
		programName + " keys create --max-":    {"--max-concurrent", "--max-tokens-per-request"},
		programName + " keys create --max-c":   {"--max-concurrent"},
		programName + " completion fi":         {"fish"},
		programName + " keys revoke --env-fil": {"--env-file"},
	} {
		cmd := exec.Command("bash", "--norc", "-c", script, "bash", line)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "DATA_DIR="+d.dir)
		out, err := cmd.Output() // bash complains that no key was pressed
		var got []string
		for word := range strings.Lines(string(out)) {
			word, _, _ = strings.Cut(strings.TrimSpace(word), " ") // without the description
			got = append(got, strings.TrimSuffix(word, "="))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q completes to %q (%v), want %q", line, out, err, want)
		}
	}
	for shell, check := range map[string][]string{"zsh": {"zsh", "-n"}, "fish": {"fish", "--no-execute"}} {
		out, errs, exit := call(t, nil, "completion", shell)
		path := filepath.Join(dir, shell)
		if err := os.WriteFile(path, []byte(out), 0o600); err != nil || exit != exitOK || out == "" {
			t.Fatalf("%s: %v, exit %d: %s, want %v, a text", shell, err, exit, errs, exitOK)
		}
		if out, err := exec.Command(check[0], append(check[1:], path)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", shell, err, out)
		}
	}
}
