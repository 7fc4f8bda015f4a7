package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// obeysEscapes enables escape sequences in the console, where they are off by default, and reports whether it could.
func obeysEscapes(f *os.File) bool {
	console := windows.Handle(f.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
