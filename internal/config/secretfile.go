package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"ollama-api-service/internal/disk"
)

const (
	secretFile  = "secret.key"
	secretBytes = 32
)

// SecretPath is where the secret is kept that is made when SECRET_KEY is not set.
func SecretPath(dataDir string) string { return filepath.Join(dataDir, secretFile) }

// Secret is the SECRET_KEY: the configured one, else the one in dataDir, else - where create says so - a new random one that
// is kept there with mode 0600. Its errors are *Error; without create an absent file is one.
func Secret(dataDir, configured string, create bool) (string, error) {
	if configured != "" {
		return configured, nil
	}
	path := SecretPath(dataDir)
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	secret, err := readSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if !create {
		return "", errorf("there is no SECRET_KEY and no %s: set SECRET_KEY or DATA_DIR as the service has it, or start `ollama-api-service serve` once", path)
	}
	secret, err = makeSecret(path)
	if errors.Is(err, fs.ErrExist) {
		return readSecret(path) // another process was first
	}
	if err != nil {
		return "", causedBy(err, "%s cannot be written: make DATA_DIR a directory that the user this runs as may write to, or set SECRET_KEY (%v)", path, reason(err))
	}
	return secret, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err != nil {
		return "", causedBy(err, "%s cannot be read: run this as the user the service runs as, or set SECRET_KEY (%v)", path, reason(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", errorf("%s is not a file: move it away, or set SECRET_KEY", path)
	}
	if _, err := Private(path); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", causedBy(err, "%s cannot be read: set SECRET_KEY, or look at the disk (%v)", path, reason(err))
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecret {
		return "", errorf("%s holds no secret of %d characters or more: put it back from a backup, or remove it if no key was made yet", path, minSecret)
	}
	return secret, nil
}

// makeSecret writes a new secret and sees to it that it is on the disk: keys made under a secret that a power cut takes
// away would be lost.
func makeSecret(path string) (secret string, err error) {
	raw := make([]byte, secretBytes)
	rand.Read(raw) // never fails: it ends the program instead
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	secret = hex.EncodeToString(raw)
	_, err = f.WriteString(secret + "\n")
	if err = errors.Join(err, f.Sync(), f.Close(), disk.SyncDirectory(filepath.Dir(path))); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return secret, nil
}

// reason is the system's word for a failure, without the path that the message has already.
func reason(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}
