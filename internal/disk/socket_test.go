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
			t.Errorf("the path is there: %v, want %v", err == nil, want)
		}
	}
	first := listen()
	if info, err := os.Lstat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("its mode is %v (%v)", info.Mode(), err)
	}
	if got := first.Addr().String(); got != path {
		t.Errorf("its address is %s", got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v (%v)", entries, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := ListenSocket(path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("a second listener: %v", err)
	}
	there(true)
	first.Close()
	there(false)

	// One that a process left behind when it was killed is replaced; what is no socket, or another's by now, stays.
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
		t.Errorf("a file is there: %v", err)
	}
	there(true)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v (%v)", entries, err)
	}
}
