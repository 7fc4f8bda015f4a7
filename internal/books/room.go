package books

import (
	"cmp"
	"errors"
	"time"

	"ollama-api-service/internal/api"
)

// Retry-After of requests that cannot be recorded: for as long as it takes to make room, between leastWait and mostWait, or diskWait if
// the disk fails.
const (
	leastWait = time.Second
	mostWait  = 10 * time.Minute
	diskWait  = 5 * time.Second
)

var errFull = errors.New("rows arrive faster than the database accepts them")

// Room returns the error of Admit if it would refuse every request. It is cheap, so that such requests need not wait for a slot first.
func (b *Books) Room() error {
	if !b.crowded.Load() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err, _ := b.roomLocked()
	return err
}

// roomLocked reports whether another row fits. If not, it returns an error for all requests, or nil if the disk fails: strict keys are
// refused then, and other requests are served without a row. Once there is no room, it stays so until some is free, to avoid flapping.
func (b *Books) roomLocked() (err error, fits bool) {
	inMemory, bytes := b.queue.kept+len(b.open), b.journal.size
	if b.memory.err != nil {
		inMemory += b.o.MaxPending / 8
	}
	if b.room.err != nil {
		bytes += 2 * b.o.SegmentBytes
	}
	failing := b.diskErrLocked()
	// Where a file can be created but nothing written or synced, rows have another place: memory.
	noRoom := bytes >= b.o.MaxBytes && b.writing.err == nil && b.syncing.err == nil
	noMemory := inMemory >= b.o.MaxPending
	if !noRoom && !noMemory && !b.crowded.Load() {
		return nil, true
	}
	b.setFull(&b.room, noRoom, cmp.Or(b.moving.err, errFull))
	b.setFull(&b.memory, noMemory, cmp.Or(failing, errFull))
	b.crowded.Store(noRoom || noMemory)
	switch {
	case !noRoom && !noMemory:
		return nil, true
	case failing != nil:
		return nil, false
	}
	full := api.Wrap(api.CodeUnavailable, cmp.Or(b.moving.err, errFull),
		"the gateway's database is behind with recording requests, and no request is served without a record: try again later")
	full.RetryAfter = b.waitLocked()
	full.NoRetry = full.RetryAfter > 30*time.Second
	return full, false
}

func (b *Books) setFull(f *fault, full bool, cause error) {
	switch {
	case full && f.err == nil:
		f.set(b, cause)
	case !full && f.err != nil:
		f.set(b, nil, "lost since the start", b.lost)
	}
}

// diskErrLocked returns why the disk fails, or nil.
func (b *Books) diskErrLocked() error { return cmp.Or(b.writing.err, b.syncing.err, b.turning.err) }

// waitLocked estimates when there is room again: when the store, at its pace, has taken the rows of the bytes that must become free.
func (b *Books) waitLocked() time.Duration {
	if b.moving.err != nil || b.reading.err != nil || b.pace.second == 0 || b.journal.size == 0 {
		return mostRetry
	}
	over := b.journal.size - b.o.MaxBytes + 2*b.o.SegmentBytes
	rows := float64(b.queue.rows) * float64(max(over, 0)) / float64(b.journal.size)
	seconds := min(rows/b.pace.second, mostWait.Seconds())
	return max(time.Duration(seconds*float64(time.Second)), leastWait)
}

// unwritten is the error for a request of a strict key while the disk fails.
func unwritten(err error) error {
	e := api.Wrap(api.CodeUnavailable, err, "the gateway cannot record this request on its disk; try again later")
	e.RetryAfter = diskWait
	return e
}
