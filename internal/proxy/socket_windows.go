package proxy

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var wsaPoll = windows.NewLazySystemDLL("ws2_32.dll").NewProc("WSAPoll")

// quietSocket reports whether a socket is open and has nothing to read. It polls, because a read on one of Go's sockets would block on
// Windows. A socket that its other end has closed polls as readable.
func quietSocket(fd uintptr) bool {
	const pollIn = 0x0100 | 0x0200 // POLLRDNORM, POLLRDBAND
	socket := struct {
		fd              uintptr
		events, revents int16
	}{fd: fd, events: pollIn}
	ready, _, _ := wsaPoll.Call(uintptr(unsafe.Pointer(&socket)), 1, 0)
	return ready == 0
}

// socketsRead is false: a read on one of Go's sockets would block on Windows.
const socketsRead = false

func readSocket(uintptr, []byte) (n int, wait bool, err error) { panic("not used") }
