package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// columns returns the width of the terminal that f writes to, or 0 if f is not a terminal.
func columns(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// terminal reports whether w is a terminal with a width that obeys escape sequences.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && columns(f) > 0 && obeysEscapes(f)
}
