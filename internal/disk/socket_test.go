package disk

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func TestListenSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "http.sock")
	listen := func() net.Listener {
		t.Helper()
		l, err := ListenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	there := func(want bool) {
		t.Helper()
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("the path exists: %v, want %v", err == nil, want)
		}
	}
	first := listen()
	if info, err := os.Lstat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the mode is %v (%v), want 0660", info.Mode(), err)
	}
	if got := first.Addr().String(); got != path {
		t.Errorf("the address is %s, want %v", got, path)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory contains %v (%v), want 1 of them", entries, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := ListenSocket(path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("a second listener: %v, want %v", err, ErrSocketInUse)
	}
	there(true)
	first.Close()
	there(false)

	// A socket that a killed process left is replaced. A file, or a socket that now belongs to another process, stays.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	there(true)
	second := listen()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	third := listen()
	second.Close()
	there(true)
	third.Close()
	there(false)
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSocket(path); err == nil || errors.Is(err, ErrSocketInUse) {
		t.Errorf("with a file at the path: %v", err)
	}
	there(true)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory contains %v (%v), want 1 of them", entries, err)
	}
}
