package dial

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// boundSocket makes the system close a connection if sent data is not acknowledged in time.
func boundSocket(_ context.Context, _, _ string, raw syscall.RawConn) error {
	Bound(raw, true)
	return nil
}

// Bound switches the limit of Lost on or off for a socket. The system also counts a receiver as lost if it acknowledges but has no room
// for more data, so the limit must be off while more is sent than the receiver has room for.
func Bound(raw syscall.RawConn, on bool) {
	bound := 0
	if on {
		bound = int(Lost.Milliseconds())
	}
	// A system without the option keeps its own, longer limit.
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, bound) })
}

// Unacknowledged returns how long the other end has not acknowledged sent data or probes, or 0 if it has. known is false if the system
// does not report it.
func Unacknowledged(raw syscall.RawConn) (wait time.Duration, known bool) {
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		known = true
		switch {
		case info.Probes > 0:
			wait = time.Duration(info.Last_ack_recv) * time.Millisecond
		case info.Unacked > 0:
			wait = time.Duration(min(info.Last_ack_recv, info.Last_data_sent)) * time.Millisecond
		}
	})
	return wait, known && err == nil
}
