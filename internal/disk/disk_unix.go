//go:build unix

package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Writable reports why this process may not make files in a directory; nil if it may.
func Writable(path string) error { return unix.Access(path, unix.W_OK|unix.X_OK) }

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
