package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that is not a terminal has no width, and gets no escape sequences.
func TestNoTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, f := range map[string]*os.File{"a file": file, "the null device": null, "a pipe": w} {
		if n := columns(f); n != 0 || terminal(f) {
			t.Errorf("%s: terminal %v with %d columns, want false and 0", name, terminal(f), n)
		}
	}
	if terminal(&strings.Builder{}) {
		t.Error("a buffer counts as a terminal")
	}
}
