package store

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"ollama-api-service/internal/api"
)

// contentsOf returns the files of a directory with their contents.
func contentsOf(t *testing.T, dir string) map[string][sha256.Size]byte {
	t.Helper()
	all := map[string][sha256.Size]byte{}
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(dir)) {
		all[e.Name()] = sha256.Sum256(must[[]byte](t)(os.ReadFile(filepath.Join(dir, e.Name()))))
	}
	return all
}

// Looking at a database of an older program changes neither the schema nor the file.
func TestLookMigratesNothing(t *testing.T) {
	path := old(t, sample(3)...)
	before := contentsOf(t, filepath.Dir(path))[filepath.Base(path)]
	seen, err := Look(t.Context(), path, noon)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Schema != 1 || seen.Newest != schemaVersion() || seen.Backends != nil {
		t.Errorf("%+v, want schema 1 of %d", seen, schemaVersion())
	}
	after := contentsOf(t, filepath.Dir(path))[filepath.Base(path)]
	if before != after {
		t.Error("the file has changed")
	}
	if again, err := Look(t.Context(), path, noon); err != nil || again.Schema != 1 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	if _, err := Look(t.Context(), filepath.Join(dir, "none", "none.db"), noon); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
	if all := contentsOf(t, dir); len(all) != 0 {
		t.Errorf("%v was created", all)
	}
	s, path := create(t)
	if seen, err := Look(t.Context(), path, noon); err != nil || seen.Admin || seen.SecretCheck != nil {
		t.Errorf("a new database: %+v, %v", seen, err)
	}
	if err := s.CreateKey(t.Context(), admin("oas_admin"), []byte("mac"), api.Change{Actor: "test", From: "local", At: noon}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSecretCheck(t.Context(), []byte("check")); err != nil {
		t.Fatal(err)
	}
	// While the service has it open.
	if seen, err := Look(t.Context(), path, noon); err != nil || !seen.Admin || string(seen.SecretCheck) != "check" || seen.Schema != seen.Newest {
		t.Errorf("one with an admin: %+v, %v", seen, err)
	}
}
