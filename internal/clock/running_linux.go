package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// running returns how long the machine has been running, including suspended time.
func running() (time.Duration, bool) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano()), err == nil
}
