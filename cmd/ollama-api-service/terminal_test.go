package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is no terminal has no width, and no escape sequence is written to it.
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
			t.Errorf("%s is taken for a terminal: %v, %d columns, want none", name, terminal(f), n)
		}
	}
	if terminal(&strings.Builder{}) {
		t.Error("a buffer is taken for a terminal")
	}
}
