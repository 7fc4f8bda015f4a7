//go:build unix

package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// lockDir takes the journal for this process. The kernel lets go of it when the process ends, however it ends; the file
// stays, since removing it would let two processes hold two files of one name.
func lockDir(dir, dataDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the journal cannot be locked: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("the journal cannot be locked: %w", err)
	}
	if abs, err := filepath.Abs(dataDir); err == nil {
		dataDir = abs
	}
	return nil, fmt.Errorf("another ollama-api-service already uses DATA_DIR %s: stop it, or give this one a DATA_DIR of its own", dataDir)
}

// Journal is the journal of a data directory that no service runs on, as long as it is held.
type Journal struct {
	dir  string
	lock *os.File
}

// Hold takes the journal of dataDir, which must exist, so that no service can start on it. It returns an error where one runs.
func Hold(dataDir string) (*Journal, error) {
	dir := journalDir(dataDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("the journal's directory cannot be made: %w", err)
	}
	lock, err := lockDir(dir, dataDir)
	if err != nil {
		return nil, err
	}
	return &Journal{dir, lock}, nil
}

// Release lets go of it.
func (j *Journal) Release() error { return j.lock.Close() }

// Files are what earlier runs left in it.
func (j *Journal) Files() ([]string, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if path := filepath.Join(j.dir, e.Name()); path != j.lock.Name() {
			list = append(list, path)
		}
	}
	return list, nil
}
