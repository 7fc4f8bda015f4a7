//go:build !linux

package clock

import "time"

// running is only available on Linux.
func running() (time.Duration, bool) { return 0, false }
