package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// SyncDirectory does nothing: Windows does not flush directories, and NTFS journals the names in them.
func SyncDirectory(string) error { return nil }

// Remove releases the lock and then removes the file, because Windows removes no open file. If another process has the lock by
// then, the file stays.
func (l *Lock) Remove() error {
	if err := l.Release(); err != nil {
		return err
	}
	if err := os.Remove(l.Path()); err != nil && !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
		return err
	}
	return nil
}

// refusedSocket reports whether no process listens on a socket.
func refusedSocket(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
