package config

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestSecretIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	_, err := Secret(dir, "", false)
	refused(t, err, SecretPath(dir), "")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the directory was created without create")
	}
	secrets := make([]string, 8)
	var wg sync.WaitGroup
	for i := range secrets {
		wg.Go(func() {
			// A process that comes between the open and the write of another finds an empty file, and returns an error instead of a
			// second secret.
			if s, err := Secret(dir, "", true); err == nil {
				secrets[i] = s
			}
		})
	}
	wg.Wait()
	kept, err := Secret(dir, "", false)
	if err != nil || len(kept) != 64 {
		t.Fatalf("a secret of %d characters, %v, want 64 of them", len(kept), err)
	}
	for _, s := range secrets {
		if s != "" && s != kept {
			t.Error("got two different secrets")
		}
	}
	info, err := os.Stat(SecretPath(dir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want %#o", info.Mode(), err, 0o600)
	}
	if again, err := Secret(dir, "", true); err != nil || again != kept {
		t.Errorf("a different secret the second time: %v, want %v", err, kept)
	}
	if set, err := Secret(dir, "the configured one", true); err != nil || set != "the configured one" {
		t.Errorf("SECRET_KEY does not override the file: %v, want %q", err, "the configured one")
	}
	if other, err := Secret(t.TempDir(), "", true); err != nil || other == kept {
		t.Errorf("two directories, one secret: %v, want not %v", err, kept)
	}
}

func TestUnusableSecretFile(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		says string
	}{
		"world-readable": {goodSecret, 0o604, "chmod 600"},
		"empty":          {"", 0o600, "does not contain a secret"},
		"cut short":      {goodSecret[:20], 0o600, "does not contain a secret"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(SecretPath(dir), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(SecretPath(dir), c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := Secret(dir, "", true)
			refused(t, err, c.says, goodSecret[:20])
			if text, _ := os.ReadFile(SecretPath(dir)); string(text) != c.text {
				t.Error("the file was changed")
			}
		})
	}
}

func TestSecretWhereNothingCanBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Secret(filepath.Join(file, "data"), "", true)
	if text := refused(t, err, "SECRET_KEY", ""); !strings.Contains(text, file) {
		t.Errorf("the message does not contain the path: %s, want %v in it", text, file)
	}
}
