package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// launched is the program in a separate process.
type launched struct {
	*testing.T
	cmd   *exec.Cmd
	ended chan struct{}
	errs  strings.Builder // complete once ended is closed

	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

// launch starts the program with the arguments. The command in before comes first, such as ip netns exec NAME.
func launch(t *testing.T, environ, before []string, args ...string) *launched {
	t.Helper()
	if testing.Short() {
		t.Skip("starts the program: make test runs it")
	}
	line := append(append(before, os.Args[0]), args...)
	p := &launched{T: t, cmd: exec.Command(line[0], line[1:]...), ended: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Env = append([]string{asProgram + "=1", "PATH=" + os.Getenv("PATH"), "OLLAMA_BASE_URL=http://127.0.0.1:1", "PORT=0"}, environ...)
	p.cmd.Dir = t.TempDir()
	p.cmd.Stderr = &p.errs
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.read(out)
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

func (p *launched) read(out io.Reader) {
	for in := bufio.NewScanner(out); in.Scan(); {
		p.mu.Lock()
		p.lines = append(p.lines, in.Text())
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
}

// line waits for a log line that matches.
func (p *launched) line(pattern string) string {
	p.Helper()
	want := regexp.MustCompile(pattern)
	deadline := time.After(testPatience)
	for ended := p.ended; ; {
		p.mu.Lock()
		lines, more := p.lines, p.more
		p.mu.Unlock()
		for _, l := range lines {
			if want.MatchString(l) {
				return l
			}
		}
		if ended == nil {
			p.Fatalf("the program ended without a line %q:\n%s\n%s", pattern, strings.Join(lines, "\n"), p.errs.String())
		}
		select {
		case <-more:
		case <-ended:
			ended = nil
		case <-deadline:
			p.Fatalf("no line %q within %s:\n%s", pattern, testPatience, strings.Join(lines, "\n"))
		}
	}
}

// exit waits for the end of the program and checks the exit code and the words on standard error.
func (p *launched) exit(code int, words ...string) {
	p.Helper()
	select {
	case <-p.ended:
	case <-time.After(testPatience):
		p.Fatalf("the program did not end within %s", testPatience)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
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
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
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
