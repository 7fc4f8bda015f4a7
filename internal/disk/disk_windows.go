package disk

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// Writable returns nil: on Windows only an attempt shows it.
func Writable(string) error { return nil }

// errnoOf returns the Unix number for a failure of Windows, or 0.
func errnoOf(err error) syscall.Errno {
	var own syscall.Errno
	errors.As(err, &own)
	switch own {
	case windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL:
		return syscall.ENOSPC
	case windows.ERROR_WRITE_PROTECT:
		return syscall.EROFS
	case windows.ERROR_NOT_READY, windows.ERROR_BAD_NETPATH, windows.ERROR_NETNAME_DELETED:
		return syscall.ENODEV
	}
	return 0
}

// SyncDirectory does nothing: Windows does not flush directories, and NTFS journals the names in them.
func SyncDirectory(string) error { return nil }

// Remove releases the lock and then removes the file, because Windows cannot remove an open file. If another process has locked it
// meanwhile, the file stays.
func (l *Lock) Remove() error {
	if err := l.Release(); err != nil {
		return err
	}
	if err := os.Remove(l.Path()); err != nil && !errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
		return err
	}
	return nil
}

// Free returns the space in bytes that this process may still use on the disk of a directory.
func Free(dir string) (int64, error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(path, &free, nil, nil); err != nil {
		return 0, err
	}
	if free < 64<<10 {
		return int64(free), syscall.ENOSPC
	}
	return int64(min(free, 1<<62)), nil
}

// refusedSocket reports whether no process listens on a socket.
func refusedSocket(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
