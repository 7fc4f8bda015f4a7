package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// obeysEscapes asks the console to obey escape sequences, which it does not by itself, and reports whether it does.
func obeysEscapes(f *os.File) bool {
	console := windows.Handle(f.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(console, &mode); err != nil {
		return false
	}
	return windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
