// Package disk has what operating systems do differently with files: locks, and names that must survive a power cut.
package disk

import (
	"errors"
	"os"

	"github.com/gofrs/flock"
)

// Lock is the exclusive lock of one process on a file. The system releases it when the process ends, however it ends.
type Lock struct{ file *flock.Flock }

// ErrLocked is the error of TryLock while another process, or another Lock of this one, has the file.
var ErrLocked = errors.New("another process has the lock")

// TryLock makes the file with mode 0600 if there is none, and locks it. It never waits.
//
// The file is empty and stays so: Windows lets no other program read what is locked.
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

// Path is the path that TryLock was given.
func (l *Lock) Path() string { return l.file.Path() }

// Release releases the lock. The file stays: if it were removed, two processes could lock two files of one name.
func (l *Lock) Release() error { return l.file.Close() }
