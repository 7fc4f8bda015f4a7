//go:build unix

package config

import (
	"fmt"
	"os"
	"syscall"
)

// Journalled reports whether f is the stream that systemd writes to its journal. systemd names that stream in JOURNAL_STREAM
// (systemd.exec(5)), which programs started by the service inherit even if their streams differ.
func Journalled(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stream, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stream.Dev, stream.Ino)
}
