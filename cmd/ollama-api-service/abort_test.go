//go:build unix

package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// A crash, or systemd's watchdog, must not look like wrong settings (exit 2), after which systemd does not restart the service.
func TestACrashIsNoMistakeInTheSettings(t *testing.T) {
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve").start(t)
	if err := p.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	p.exit(t, testPatience)
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) {
		t.Fatalf("%v", p.err)
	}
	status := exit.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGABRT || status.CoreDump() {
		t.Errorf("ended with %v, want SIGABRT without a core dump", p.err)
	}
	if files, err := filepath.Glob(filepath.Join(p.Dir, "core*")); err != nil || len(files) > 0 {
		t.Errorf("%q: %v, want none", files, err)
	}
}
