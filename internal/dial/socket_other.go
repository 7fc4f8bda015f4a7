//go:build !linux

package dial

import (
	"context"
	"syscall"
	"time"
)

// boundSocket does nothing: the questions of keep-alive end a connection here.
func boundSocket(context.Context, string, string, syscall.RawConn) error { return nil }

// Bound does nothing.
func Bound(syscall.RawConn, bool) {}

// Unacknowledged knows nothing.
func Unacknowledged(syscall.RawConn) (wait time.Duration, known bool) { return 0, false }
