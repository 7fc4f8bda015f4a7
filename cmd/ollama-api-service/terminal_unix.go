//go:build unix

package main

import "os"

// obeysEscapes reports true: every current Unix terminal obeys the few escape sequences that this program writes.
func obeysEscapes(*os.File) bool { return true }
