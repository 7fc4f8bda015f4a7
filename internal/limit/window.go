package limit

import "time"

// One bucket more than the span has: any 60 minutes touch at most 61 whole minutes, so holding 61 of them to the limit holds each
// rolling hour to it. The price is that what was used is released up to one bucket late. A day goes by quarters of an hour.
const (
	hourBuckets = 60 + 1 // of a minute
	quarter     = 15     // minutes
	dayBuckets  = 24*60/quarter + 1
)

// window sums up amounts over a rolling span. Steps count from 1970; bucket[s % len] is that of step s, for as many steps up to
// last as there are buckets.
type window struct {
	step   int64 // minutes
	last   int64 // step
	used   int64 // sum of all buckets
	bucket []int64
}

func newWindow(step, buckets, minute int64) window {
	return window{step: step, last: minute / step, bucket: make([]int64, buckets)}
}

// advance empties the buckets that no longer count. Time that goes backwards does not move it.
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

// add counts an amount in a minute, or as the newest where that lies ahead. What is over does not count.
func (w *window) add(minute, amount int64) {
	at := min(minute/w.step, w.last)
	if w.last-at < int64(len(w.bucket)) {
		w.bucket[at%int64(len(w.bucket))] += amount
		w.used += amount
	}
}

// take undoes an add.
func (w *window) take(minute, amount int64) { w.add(minute, -amount) }

// over says whether nothing can be left in it.
func (w *window) over(minute int64) bool { return minute/w.step-w.last >= int64(len(w.bucket)) }

// until is how long it takes, in whole seconds and at least one, until no more than most is used: more than one bucket must go
// when a limit was lowered, or when much is asked for at once.
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

// longest is the longest that anything counts.
func (w *window) longest() time.Duration {
	return time.Duration(int64(len(w.bucket))*w.step) * time.Minute
}
