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

// SecretPath is the file of the generated secret, which is used if SECRET_KEY is not set.
func SecretPath(dataDir string) string { return filepath.Join(dataDir, secretFile) }

// Secret returns the SECRET_KEY: the configured one, or the one in dataDir or, if create is set, a new random one that is stored there
// with mode 0600. Without create, a missing file is an error. Errors are of type *Error.
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
		return "", errorf("there is no SECRET_KEY and no %s: set SECRET_KEY or DATA_DIR to the value that the service uses, or run `ollama-api-service serve` once", path)
	}
	secret, err = makeSecret(path)
	if errors.Is(err, fs.ErrExist) {
		return readSecret(path) // another process was first
	}
	if err != nil {
		return "", causedBy(err, "%s cannot be written: make DATA_DIR a directory that the user of the service may write to, or set SECRET_KEY (%v)", path, reason(err))
	}
	return secret, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err != nil {
		return "", causedBy(err, "%s cannot be read: run this as the user of the service, or set SECRET_KEY (%v)", path, reason(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", errorf("%s is not a file: move it, or set SECRET_KEY", path)
	}
	if _, err := Private(path); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", causedBy(err, "%s cannot be read: check the disk, or set SECRET_KEY (%v)", path, reason(err))
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecret {
		return "", errorf("%s does not contain a secret of at least %d characters: restore it from a backup, or remove it if no key was created yet", path, minSecret)
	}
	return secret, nil
}

// makeSecret writes a new secret and syncs it to the disk: if a power failure removed the secret, the keys hashed with it would be lost.
func makeSecret(path string) (secret string, err error) {
	raw := make([]byte, secretBytes)
	rand.Read(raw) // never returns an error: it ends the program instead
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

// reason returns the system's error without the path, which the message already contains.
func reason(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}
