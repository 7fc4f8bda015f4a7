package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// running is how long the machine has run, suspended time included.
func running() (time.Duration, bool) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano()), err == nil
}
