package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// socketMode lets the group of the process connect, which a proxy can be a member of.
const socketMode = 0o660

// ErrSocketInUse is returned if another process listens on the path.
var ErrSocketInUse = errors.New("another process is listening on it")

// ListenSocket listens on a Unix socket at path with mode 0660. It replaces a socket that no process listens on, and no other file.
// Closing the listener removes the path, unless it belongs to another socket by then.
func ListenSocket(path string) (net.Listener, error) {
	if err := stale(path); err != nil {
		return nil, err
	}
	// Create it in a directory that no other user may enter, so that it never exists with another mode.
	private, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, err
	}
	defer os.Remove(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, socketMode), os.Rename(made, path)); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(made))
	}
	own, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path, own: own}, nil
}

// stale returns nil if a socket may be created at path.
func stale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket: name another path, or move it", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		c.Close()
		return ErrSocketInUse
	case refusedSocket(err):
		return nil
	}
	return fmt.Errorf("cannot find out whether another process is listening on it: %w", err)
}

// socket is a listener that removes its path when it is closed.
type socket struct {
	net.Listener
	path string
	own  fs.FileInfo
	once sync.Once
}

// Addr returns the address that clients connect to.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops listening.
func (s *socket) Close() error {
	err := s.Listener.Close()
	s.once.Do(func() {
		if now, statErr := os.Lstat(s.path); statErr == nil && os.SameFile(now, s.own) {
			err = errors.Join(err, os.Remove(s.path))
		}
	})
	return err
}
