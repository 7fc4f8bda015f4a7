//go:build unix

package config

import (
	"fmt"
	"os"
	"syscall"
)

// Journalled says whether f is the stream that systemd keeps in its journal: it names it in JOURNAL_STREAM, as systemd.exec(5) has it,
// which programs started from the service inherit too, with other streams.
func Journalled(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stream, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stream.Dev, stream.Ino)
}
