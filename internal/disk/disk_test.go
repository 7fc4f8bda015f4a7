package disk

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestMain also runs the other process of TestLockEndsWithItsProcess: it locks the file in LOCK_THIS and waits until it is killed.
func TestMain(m *testing.M) {
	path := os.Getenv("LOCK_THIS")
	if path == "" {
		os.Exit(m.Run())
	}
	_, err := TryLock(path)
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("locked\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func TestLockIsExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if first.Path() != path {
		t.Errorf("its path is %q, want %q", first.Path(), path)
	}
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("the second lock: %v, want %v", err, ErrLocked)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 0 || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v, want an empty one of mode 0600", info, err)
	}
	if err := first.Release(); err != nil {
		t.Error(err)
	}
	second, err := TryLock(path)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	if err := second.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the removed file: %v, want none", err)
	}
}

func TestLockThatCannotBeTaken(t *testing.T) {
	_, err := TryLock(filepath.Join(t.TempDir(), "absent", "lock"))
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestLockEndsWithItsProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "LOCK_THIS="+path)
	stdin, err := other.StdinPipe() // kept open, so that the other process waits
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "locked" {
		t.Errorf("the other process: %q, %v, want locked", line, err)
	}
	if _, err := TryLock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("while the other process has it: %v, want %v", err, ErrLocked)
	}
	if err := other.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = other.Wait()
	lock, err := TryLock(path)
	if err != nil {
		t.Fatalf("after the other process was killed: %v", err)
	}
	_ = lock.Release()
}

func TestSyncDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := SyncDirectory(dir); err != nil {
		t.Errorf("%v, want none", err)
	}
	if err := SyncDirectory(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) && runtime.GOOS != "windows" {
		t.Errorf("a missing directory: %v", err)
	}
}

func TestCause(t *testing.T) {
	for err, want := range map[error]string{
		&fs.PathError{Op: "write", Err: syscall.ENOSPC}: "full", syscall.EDQUOT: "quota", syscall.EROFS: "read-only", syscall.EIO: "failing",
		syscall.ESTALE: "away", syscall.ENOTCONN: "away", ErrLocked: "locked", syscall.EMFILE: "handles", syscall.EACCES: "", fs.ErrNotExist: "",
	} {
		fault, ok := Cause(err)
		if fault.Name != want || ok != (want != "") || ok && fault.Hint == "" {
			t.Errorf("%v: %+v, %v, want %q", err, fault, ok, want)
		}
	}
	if _, ok := Cause(nil); ok {
		t.Error("a nil error has a cause")
	}
}

func TestTryAndFree(t *testing.T) {
	dir := t.TempDir()
	if err := Try(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v, want nothing", left, err)
	}
	if free, err := Free(dir); err != nil || free <= 0 {
		t.Errorf("%d bytes free, %v, want some", free, err)
	}
	if err := Try(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}
