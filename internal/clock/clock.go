// Package clock tells time by how long the machine runs, so that no step of the wall clock moves it.
package clock

import (
	"sync/atomic"
	"time"
)

// look is how often the system is asked how long the machine slept: asking at each reading would cost a system call, several times in
// each request.
const look = time.Second

// Start begins a clock at the present time. It includes the time for which the machine is suspended, at most a second after it wakes,
// where the system can tell that (Linux can); elsewhere it stops for that time. Steps of the wall clock do not move it: after
// one, its answers differ from the time of day by that step. So it is for spans and not for dates.
func Start() func() time.Time { return start(time.Now, running) }

func start(now func() time.Time, running func() (time.Duration, bool)) func() time.Time {
	begun, ok := running()
	if !ok {
		return now // differences of it follow Go's monotonic clock, which sleeps with the machine
	}
	first := now()
	wall := first.Round(0) // without the monotonic clock, by which Sub would go
	var slept, next atomic.Int64
	return func() time.Time {
		awake := now().Sub(first)
		if int64(awake) >= next.Load() {
			next.Store(int64(awake + look))
			since, _ := running()
			if asleep := int64(since - begun - awake); asleep > slept.Load() {
				slept.Store(asleep)
			}
		}
		return wall.Add(awake + time.Duration(slept.Load()))
	}
}
