//go:build unix

package disk

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writable returns why this process may not create files in a directory, or nil if it may.
func Writable(path string) error { return unix.Access(path, unix.W_OK|unix.X_OK) }

// errnoOf returns 0: on Unix, errors have the numbers that Cause looks for.
func errnoOf(error) syscall.Errno { return 0 }

// SyncDirectory syncs the file names in a directory to the disk.
func SyncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove removes the file and then releases the lock, so that no process can lock a file that is about to be removed.
func (l *Lock) Remove() error {
	return errors.Join(os.Remove(l.Path()), l.Release())
}

// leastFree is the space below which a disk counts as full.
const leastFree = 64 << 10

// Free returns the space in bytes that this process may still use on the disk of a directory. The error is syscall.EROFS for a disk that
// is mounted read-only and syscall.ENOSPC for a full one. Free writes nothing.
func Free(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	free := int64(s.Bavail) * int64(s.Bsize)
	switch {
	case uint64(s.Flags)&readOnlyFlag != 0:
		return free, syscall.EROFS
	case s.Blocks > 0 && free < leastFree || s.Files > 0 && s.Ffree == 0:
		return free, syscall.ENOSPC
	}
	return free, nil
}

// refusedSocket reports whether no process listens on a socket.
func refusedSocket(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
