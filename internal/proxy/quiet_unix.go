//go:build unix

package proxy

import (
	"errors"
	"syscall"
)

// quietSocket reports whether a socket is open and has nothing to read. The sockets of package net never block.
func quietSocket(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return errors.Is(err, syscall.EAGAIN)
}
