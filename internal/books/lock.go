package books

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ollama-api-service/internal/disk"
)

// lockDir locks the journal for this process.
func lockDir(dir, dataDir string) (*disk.Lock, error) {
	lock, err := disk.TryLock(filepath.Join(dir, "lock"))
	if err == nil {
		return lock, nil
	}
	if !errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("the journal cannot be locked: %w", err)
	}
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	return nil, fmt.Errorf("another ollama-api-service already uses DATA_DIR %s: stop it, or give this one its own DATA_DIR (%w)", dataDir, disk.ErrLocked)
}

// lock returns the lock that is already held, or a new one.
func (o Options) lock(dir, dataDir string) (*disk.Lock, error) {
	if o.Held != nil {
		return o.Held.lock, nil
	}
	return lockDir(dir, dataDir)
}

// Held reports whether a service runs on dataDir. It creates nothing.
func Held(dataDir string) (bool, error) {
	path := filepath.Join(journalDir(dataDir), "lock")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	lock, err := disk.TryLock(path)
	if errors.Is(err, disk.ErrLocked) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, lock.Release()
}

// Journal is the locked journal of a data directory that no service runs on.
type Journal struct {
	dir  string
	lock *disk.Lock
}

// Hold locks the journal of dataDir, which must exist, so that no service can start on it. It returns an error if one is running.
func Hold(dataDir string) (*Journal, error) {
	dir := journalDir(dataDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("the journal's directory cannot be created: %w", err)
	}
	lock, err := lockDir(dir, dataDir)
	if err != nil {
		return nil, err
	}
	return &Journal{dir, lock}, nil
}

// Release releases the lock.
func (j *Journal) Release() error { return j.lock.Release() }

// Files returns the files that earlier runs left in the journal.
func (j *Journal) Files() ([]string, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if path := filepath.Join(j.dir, e.Name()); path != j.lock.Path() {
			list = append(list, path)
		}
	}
	return list, nil
}
