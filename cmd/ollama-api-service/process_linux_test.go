package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// launched is the program with the test that started it. It has no settings but those of the test, and prints errors apart from its log.
type launched struct {
	*testing.T
	*process
}

// launch starts the program with the arguments. The command in before comes first, such as ip netns exec NAME.
func launch(t *testing.T, environ, before []string, args ...string) *launched {
	t.Helper()
	if testing.Short() {
		t.Skip("starts the program: make test runs it")
	}
	p := &launched{t, programOf(t, nil, args...)}
	if len(before) > 0 {
		dir := p.Dir
		p.Cmd = exec.Command(before[0], append(before[1:], p.Args...)...)
		p.Dir = dir
	}
	p.Env = append([]string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "OLLAMA_BASE_URL=http://127.0.0.1:1", "PORT=0"}, environ...)
	p.errs = &logLines{}
	p.Stderr = p.errs
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.begin(t)
	return p
}

// line waits for a log line that matches.
func (p *launched) line(pattern string) (line string) {
	p.Helper()
	want := regexp.MustCompile(pattern)
	p.waitFor(p.T, func() bool {
		line = p.lines.first(want.MatchString)
		return line != ""
	}, fmt.Sprintf("no log line matches %q", pattern))
	return line
}

// exit waits for the end of the program and checks the exit code and the words on standard error.
func (p *launched) exit(code int, words ...string) {
	p.Helper()
	select {
	case <-p.ended:
	case <-time.After(testPatience):
		p.Fatalf("the program did not end within %s", testPatience)
	}
	if got := p.ProcessState.ExitCode(); got != code {
		p.Errorf("exit %d, want %d: %s", got, code, p.errs.String())
	}
	for _, w := range words {
		if !strings.Contains(p.errs.String(), w) {
			p.Errorf("standard error is %q, want %q in it", p.errs.String(), w)
		}
	}
}

// stop sends SIGTERM and checks that the program exits cleanly.
func (p *launched) stop() {
	p.Helper()
	_ = p.Process.Signal(syscall.SIGTERM)
	p.exit(exitOK)
}

// must runs a system command.
func must(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// needRoot skips the test if it cannot create mounts and namespaces.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("this test creates mounts and namespaces, which needs root")
	}
}

// tmpfs mounts a memory disk of this size.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, dir, "size="+size)
	return dir
}

func mount(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("this system allows no mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill uses all space of a disk and returns a function that frees it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "full")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}
