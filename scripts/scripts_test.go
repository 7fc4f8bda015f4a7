// Package scripts_test tests the functions of the shell scripts in this directory.
package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shell runs commands in bash after it has sourced a script of this directory.
func shell(t *testing.T, script, commands string, env ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command("bash", "-c", ". "+script+"\n"+commands)
	cmd.Env = append(os.Environ(), env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// With empty caches the go command writes "go: downloading ..." to standard error before it does its work. That is not a finding.
func TestNothing(t *testing.T) {
	for _, c := range []struct {
		name, command string
		findings      string
		status        int
	}{
		{"downloads, finds nothing", `echo "go: downloading example.net/x v1.0.0" >&2`, "", 0},
		{"downloads, finds something", `echo "go: downloading example.net/x v1.0.0" >&2; echo main.go`, "main.go\n", 1},
		{"finds something", `echo main.go`, "main.go\n", 1},
		{"finds something and fails", `echo main.go; return 2`, "main.go\n", 1},
		{"fails in silence", `return 3`, "", 3},
		{"fails with a sentence", `echo "no such module" >&2; return 1`, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, _, status := shell(t, "./test.sh", "stub() { "+c.command+"; }\nnothing stub")
			if stdout != c.findings || status != c.status {
				t.Errorf("printed %q with status %d, want %q with %d", stdout, status, c.findings, c.status)
			}
		})
	}
}

// No check of the scripts may take what a command writes to standard error for a finding.
func TestStandardErrorIsNoFinding(t *testing.T) {
	captured := regexp.MustCompile(`\$\([^()]*2>&1[^()]*\)`)
	for _, path := range []string{"test.sh", "setup.sh", "demo.sh", "fuzz.sh", "../.ci/run"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if found := captured.FindString(string(text)); found != "" {
			t.Errorf("%s: %s mixes standard error into the output that it checks", path, found)
		}
	}
}

// If one package is missing, missing and ready name it, but only for the commands that need it.
func TestMissing(t *testing.T) {
	for _, c := range []struct{ absent, need, want string }{
		{"", "test", ""},
		{"strace", "test", "strace"},
		{"strace", "lint", ""},
		{"g++", "demo", "g++"},
		{"promtool", "test", "prometheus"},
		{"gcc", "lint", "gcc"},
		{"curl", "demo", "curl"},
		{"curl npm", "test", "curl npm"},
		{"/usr/share/bash-completion/bash_completion", "test", "bash-completion"},
	} {
		there := `there() { case " ` + c.absent + ` " in *" $1 "*) return 1 ;; esac; }`
		stdout, _, status := shell(t, "./setup.sh", there+"\nmissing "+c.need)
		if strings.TrimSpace(stdout) != c.want || status != 0 {
			t.Errorf("without %s, %s needs %q (status %d), want %q", c.absent, c.need, strings.TrimSpace(stdout), status, c.want)
		}
		_, stderr, status := shell(t, "./setup.sh", there+"\nready "+c.need)
		if (status == 0) != (c.want == "") || c.want != "" && !strings.Contains(stderr, "apt-get install -y "+c.want+"\n") {
			t.Errorf("without %s, %s is ready with status %d: %q", c.absent, c.need, status, stderr)
		}
	}
}

func TestThere(t *testing.T) {
	for what, want := range map[string]int{"bash": 0, "no-such-command": 1, "/etc/passwd": 0, "/no/such/file": 1, "python:json": 0, "python:no_such_module": 1} {
		if _, _, status := shell(t, "./setup.sh", "there "+what); status != want {
			t.Errorf("there %s: status %d, want %d", what, status, want)
		}
	}
}

// The list of packages is in packages.txt only: the documents name the command that reads it.
func TestPackagesAreListedOnce(t *testing.T) {
	text, err := os.ReadFile("packages.txt")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(line, "#") {
			if len(fields) < 4 || !slices.Contains([]string{"demo", "lint", "test"}, fields[1]) {
				t.Errorf("%q does not have a package, demo|lint|test, SHOWN BY and WHAT IT DOES", line)
			}
			names = append(names, fields[0])
		}
	}
	if len(names) < 20 {
		t.Errorf("packages.txt has %d lines", len(names))
	}
	list := regexp.MustCompile(`apt-get install [^\n$]*\b(` + regexp.QuoteMeta("g++") + `|chromium|strace|npm)`)
	for path, command := range map[string]string{
		"../README.md": "$(scripts/setup.sh missing demo)", "../CONTRIBUTING.md": "$(scripts/setup.sh missing)",
		"../.ci/run": "missing test", "test.sh": "ready", "demo.sh": "ready demo",
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), command) || list.Match(text) {
			t.Errorf("%s must take its packages from %q, and have no list of its own", path, command)
		}
	}
}

// progress shows that a long command still runs, and returns the command's status. Its timer must not keep the output open, or a pipe
// would not end.
func TestProgress(t *testing.T) {
	stdout, _, status := shell(t, "./setup.sh", `
		done=$(mktemp -u); mkfifo "$done"
		work() { read -r <"$done"; return 7; }
		progress "building" work > >(while read -r line; do echo "$line"; echo over 1<>"$done" >"$done"; break; done)
		status=$?; wait; rm "$done"; exit $status`, "PROGRESS_EVERY=0.05")
	if status != 7 || !strings.HasPrefix(stdout, "... building: ") {
		t.Errorf("printed %q with status %d, want a line of progress and 7", stdout, status)
	}
}

// The home of CI is empty, and the settings of the registries are kept.
func TestEmptyHome(t *testing.T) {
	old, home := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(old, ".npmrc"), []byte("registry=https://npm.example.net/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(old, "goenv")
	if err := os.WriteFile(config, []byte("GOPROXY=https://go.example.net\nGONOSUMDB=*\nGOBIN="+old+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(old, "tool-of-the-caller")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	unset := "unset GOPROXY GONOSUMDB npm_config_registry GOBIN GOMODCACHE GOCACHE\nexport HOME=" + old + "\nPATH=" + old + ":$PATH\nempty_home " + home + "\n"
	stdout, stderr, status := shell(t, "./setup.sh", unset+`
		go env GOPROXY GONOSUMDB GOMODCACHE GOCACHE GOBIN GOPATH
		npm config get registry; npm config get cache; echo "$HOME"; command -v tool-of-the-caller || echo none`,
		"GOENV="+config, "XDG_CACHE_HOME="+old)
	want := []string{
		"https://go.example.net", "*", home + "/go/pkg/mod", home + "/.cache/go-build", home + "/go/bin", home + "/go",
		"https://npm.example.net/", home + "/.npm", home, "none",
	}
	if got := strings.Fields(stdout); status != 0 || !slices.Equal(got, want) {
		t.Errorf("status %d, %q (%s)\nwant %q", status, got, stderr, want)
	}
}

// .ci/run runs make in an empty home, returns its status, and leaves no files behind; CI=false keeps the caller's home.
func TestCI(t *testing.T) {
	root, bin, temp := t.TempDir(), t.TempDir(), t.TempDir()
	copied := exec.Command("cp", "-R", "../.ci", "../scripts", root)
	if out, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	goCommand, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(goCommand, filepath.Join(bin, "go")); err != nil {
		t.Fatal(err)
	}
	packages := filepath.Join(root, "e2e", "clients", "node_modules")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(root, "scripts", "packages.txt"): "",
		filepath.Join(bin, "make"): `#!/bin/sh
			echo "home:$HOME:$(ls -A "$HOME" | wc -l):$(go env GOMODCACHE)"
			[ "$HOME" = "$CALLER" ] || { mkdir -p "$GOMODCACHE/a" && touch "$GOMODCACHE/a/b" && chmod -R a-w "$GOMODCACHE"; }
			exit 3`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(ci string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(root, ".ci", "run"))
		home := t.TempDir()
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+temp, "CI="+ci, "HOME="+home, "CALLER="+home)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("CI=%s: %v, want the status 3 of make: %s", ci, err, out)
		}
		return string(out)
	}
	if out := run("false"); !strings.Contains(out, "home:") || strings.Contains(out, "home:"+temp) {
		t.Errorf("CI=false uses another home: %s", out)
	}
	if _, err := os.Stat(packages); err != nil {
		t.Errorf("CI=false removed npm packages: %v", err)
	}
	out := run("true")
	m := regexp.MustCompile(`home:(` + regexp.QuoteMeta(temp) + `[^:]*):0:(\S*)`).FindStringSubmatch(out)
	if m == nil || m[2] != m[1]+"/go/pkg/mod" {
		t.Errorf("the home is not an empty one below TMPDIR: %s", out)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(packages); !os.IsNotExist(err) {
		t.Errorf("npm packages of an earlier run are still there: %v", err)
	}
}
