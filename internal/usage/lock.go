//go:build unix

package usage

import (
	"errors"
	"fmt"
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
