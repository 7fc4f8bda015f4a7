package dial

import (
	"context"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// boundSocket has the system give a connection up when what was sent is not acknowledged in time.
func boundSocket(_ context.Context, _, _ string, raw syscall.RawConn) error {
	Bound(raw, true)
	return nil
}

// Bound switches the bound of Lost for a socket on or off. The system counts a receiver that acknowledges but takes nothing in as lost,
// too, so the bound must be off while more is sent than the receiver has room for.
func Bound(raw syscall.RawConn, on bool) {
	bound := 0
	if on {
		bound = int(Lost.Milliseconds())
	}
	// A system that lacks the option keeps its own, longer bound.
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, bound) })
}

// Unacknowledged is how long the other end has not answered what was sent, data or the system's own questions; 0 if it has. known is
// false where the system does not say.
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
