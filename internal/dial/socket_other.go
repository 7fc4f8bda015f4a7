//go:build !linux

package dial

import (
	"context"
	"syscall"
	"time"
)

// boundSocket does nothing: on these systems, keep-alive probes end a connection.
func boundSocket(context.Context, string, string, syscall.RawConn) error { return nil }

// Bound does nothing.
func Bound(syscall.RawConn, bool) {}

// Unacknowledged is not available on these systems.
func Unacknowledged(syscall.RawConn) (wait time.Duration, known bool) { return 0, false }
