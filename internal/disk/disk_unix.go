//go:build unix

package disk

import (
	"errors"
	"os"
	"syscall"
)

// SyncDirectory writes the names of the files in a directory to the disk.
func SyncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove removes the file and then releases the lock, so that no process gets the lock of a file that is about to go.
func (l *Lock) Remove() error {
	return errors.Join(os.Remove(l.Path()), l.Release())
}

// refusedSocket reports whether no process listens on a socket.
func refusedSocket(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
