//go:build linux

package main

import "time"

// The streams are paced by wheels, one for each distance between two chunks of a stream. A wheel has a slot for each wheelTick of its
// distance. Streams are spread evenly over the slots, as with independent models, so that no proxy profits from chunks that arrive at the
// same time.
const (
	wheelTick = 250 * time.Microsecond
	chunkGap  = 5 * time.Millisecond // the distance unless a request says another
	// think is the least time before the first record. An immediate answer triggers a race in net/http: a server that begins its answer
	// closes the body of its request, and if Transport has not read that body to EOF by then, it drops the connection in mid-stream. No
	// model is that fast, and ReverseProxy lost one stream in some thousands because of it.
	think = 50 * time.Millisecond
)

type wheel struct {
	slots               []map[*mockConn]struct{}
	at, next, streaming int
}

func newWheel(gap time.Duration) *wheel {
	w := &wheel{slots: make([]map[*mockConn]struct{}, max(1, gap/wheelTick))}
	for i := range w.slots {
		w.slots[i] = map[*mockConn]struct{}{}
	}
	return w
}

// add puts a stream into the next slot.
func (w *wheel) add(c *mockConn) {
	c.wheel, c.slot = w, w.next%len(w.slots)
	// The first record goes out in the turn that follows those of the thinking.
	c.sent = -int(max(1, think/(wheelTick*time.Duration(len(w.slots)))))
	w.next++
	w.slots[c.slot][c] = struct{}{}
	w.streaming++
}

func (w *wheel) remove(c *mockConn) {
	delete(w.slots[c.slot], c)
	c.wheel = nil
	w.streaming--
}

// turn moves the wheel and calls do for each stream that is due. It skips records that are late by more than a whole turn, because a
// model does not send a burst to catch up.
func (w *wheel) turn(ticks int, do func(c *mockConn)) {
	for range min(ticks, len(w.slots)) {
		w.at = (w.at + 1) % len(w.slots)
		for c := range w.slots[w.at] {
			do(c)
		}
	}
}
