package store

import (
	"path/filepath"
	"syscall"

	sqlite3 "modernc.org/sqlite/lib"

	"ollama-api-service/internal/disk"
)

// caused is a failure of SQLite with an error of the system for disk.Cause. Its text is SQLite's.
type caused struct{ failure, cause error }

func (c caused) Error() string   { return c.failure.Error() }
func (c caused) Unwrap() []error { return []error{c.failure, c.cause} }

// withCause adds the system error that corresponds to SQLite's result code, because SQLite does not expose the system's error number.
func withCause(err error) error {
	code := resultCode(err)
	if code == sqlite3.SQLITE_READONLY_DBMOVED {
		return caused{err, syscall.ESTALE}
	}
	switch code & 0xff {
	case sqlite3.SQLITE_FULL:
		return caused{err, syscall.ENOSPC}
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return caused{err, disk.ErrLocked}
	case sqlite3.SQLITE_READONLY:
		return caused{err, syscall.EROFS}
	case sqlite3.SQLITE_NOMEM:
		return caused{err, syscall.ENOMEM}
	case sqlite3.SQLITE_IOERR:
		return caused{err, syscall.EIO}
	}
	return err
}

// withTriedCause is withCause for a file that cannot be opened. SQLite uses one code for a full disk, a read-only disk and missing
// permissions, so this function writes a small file next to the database to find the cause.
func withTriedCause(path string, err error) error {
	switch resultCode(err) & 0xff {
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM:
		if why := disk.Try(filepath.Dir(path)); why != nil {
			return caused{err, why}
		}
	}
	return withCause(err)
}
