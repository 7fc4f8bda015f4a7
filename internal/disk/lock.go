// Package disk provides file operations that differ between operating systems: locks, and names that survive a power failure.
package disk

import (
	"errors"
	"os"

	"github.com/gofrs/flock"
)

// Lock is an exclusive lock of one process on a file. The system releases it when the process ends, in whatever way.
type Lock struct{ file *flock.Flock }

// ErrLocked is the error of TryLock if another process, or another Lock of this process, holds the lock.
var ErrLocked = errors.New("another process holds the lock")

// TryLock creates the file with mode 0600 if it does not exist, and locks it. It never blocks.
//
// The file stays empty, because on Windows no other program can read a locked file.
func TryLock(path string) (*Lock, error) {
	l := &Lock{flock.New(path, flock.SetFlag(os.O_RDWR|os.O_CREATE), flock.SetPermissions(0o600))}
	locked, err := l.file.TryLock()
	if err != nil {
		return nil, err
	}
	if !locked {
		return nil, ErrLocked
	}
	return l, nil
}

// Path is the path that was passed to TryLock.
func (l *Lock) Path() string { return l.file.Path() }

// Release releases the lock. The file stays: if it were removed, two processes could lock two files with one name.
func (l *Lock) Release() error { return l.file.Close() }
