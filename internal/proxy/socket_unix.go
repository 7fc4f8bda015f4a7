//go:build unix

package proxy

import (
	"errors"
	"io"
	"syscall"
)

// quietSocket reports whether a socket is open and has nothing to read. The sockets of package net never block.
func quietSocket(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
	return errors.Is(err, syscall.EAGAIN)
}

// socketsRead reports whether readSocket can be used.
const socketsRead = true

// readSocket reads what has come on a socket. wait reports that nothing has. The sockets of package net never block.
func readSocket(fd uintptr, p []byte) (n int, wait bool, err error) {
	for {
		switch n, err := syscall.Read(int(fd), p); {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, true, nil
		case err != nil:
			return 0, false, err
		case n == 0:
			return 0, false, io.EOF
		default:
			return n, false, nil
		}
	}
}
