package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// columns is how wide the terminal is that f writes to; 0 where it is none.
func columns(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// terminal reports whether w is a terminal that has a width and obeys escape sequences.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && columns(f) > 0 && obeysEscapes(f)
}
