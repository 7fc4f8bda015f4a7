// Package clock measures time by how long the machine has been running, so that changes of the wall clock do not affect it.
package clock

import (
	"sync/atomic"
	"time"
)

// checkEvery is how often the clock asks the system how long the machine was suspended. Asking at each reading would cost a system call
// several times in each request.
const checkEvery = time.Second

// Start returns a clock that starts at the present time. Where the system reports it (on Linux), the clock includes the time for which
// the machine is suspended, within a second after it wakes; on other systems it stops meanwhile. Changes of the wall clock do not affect
// it, so after one it differs from the time of day. Use it for durations, not for dates.
func Start() func() time.Time { return start(time.Now, running) }

func start(now func() time.Time, uptime func() (time.Duration, bool)) func() time.Time {
	begun, ok := uptime()
	if !ok {
		return now // its differences follow Go's monotonic clock, which stops while the machine is suspended
	}
	first := now()
	wall := first.Round(0) // without the monotonic clock, which Sub would use
	var slept, next atomic.Int64
	return func() time.Time {
		awake := now().Sub(first)
		if int64(awake) >= next.Load() {
			next.Store(int64(awake + checkEvery))
			since, _ := uptime()
			if asleep := int64(since - begun - awake); asleep > slept.Load() {
				slept.Store(asleep)
			}
		}
		return wall.Add(awake + time.Duration(slept.Load()))
	}
}
