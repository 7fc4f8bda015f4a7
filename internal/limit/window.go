package limit

import "time"

// There is one bucket more than the span has: any 60 minutes overlap at most 61 whole minutes, so limiting 61 of them limits each rolling
// hour. In return, usage is released up to one bucket late. A day has buckets of a quarter of an hour.
const (
	hourBuckets = 60 + 1 // one minute each
	quarter     = 15     // minutes
	dayBuckets  = 24*60/quarter + 1
)

// window sums up amounts over a rolling span. Steps count from 1970. bucket[s % len] belongs to step s, for the len steps up to last.
type window struct {
	step   int64 // minutes
	last   int64 // step
	used   int64 // sum of all buckets
	bucket []int64
}

func newWindow(step, buckets, minute int64) window {
	return window{step: step, last: minute / step, bucket: make([]int64, buckets)}
}

// advance empties the buckets that no longer count. It does nothing if time goes backwards.
func (w *window) advance(minute int64) {
	now, n := minute/w.step, int64(len(w.bucket))
	if now-w.last >= n {
		clear(w.bucket)
		w.last, w.used = now, 0
		return
	}
	for w.last < now {
		w.last++
		w.used -= w.bucket[w.last%n]
		w.bucket[w.last%n] = 0
	}
}

// add counts an amount in a minute, or in the newest step if that minute is in the future. It ignores minutes that no longer count.
func (w *window) add(minute, amount int64) {
	at := min(minute/w.step, w.last)
	if w.last-at < int64(len(w.bucket)) {
		w.bucket[at%int64(len(w.bucket))] += amount
		w.used += amount
	}
}

// take undoes an add.
func (w *window) take(minute, amount int64) { w.add(minute, -amount) }

// over reports whether nothing is left in the window.
func (w *window) over(minute int64) bool { return minute/w.step-w.last >= int64(len(w.bucket)) }

// until returns how long it takes, in whole seconds and at least one, until at most most is used. More than one bucket may have to expire
// if a limit was lowered or much is requested.
func (w *window) until(most int64, now instant) time.Duration {
	n := int64(len(w.bucket))
	left := w.used
	for s := w.last - n + 1; s <= w.last; s++ {
		left -= w.bucket[(s%n+n)%n]
		if left <= most {
			wait := time.Duration((s+n)*w.step-now.minute)*time.Minute - now.into
			return min(max((wait+time.Second-1).Truncate(time.Second), time.Second), w.longest())
		}
	}
	return w.longest()
}

// longest is the longest time that an amount counts.
func (w *window) longest() time.Duration {
	return time.Duration(int64(len(w.bucket))*w.step) * time.Minute
}
