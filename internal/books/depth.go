package books

import (
	"cmp"
	"time"

	"ollama-api-service/internal/disk"
)

// Depth is how far the store lags behind, for /health.
type Depth struct {
	JournalBytes    int64      `json:"journal_bytes"`
	JournalMaxBytes int64      `json:"journal_max_bytes"`
	Waiting         int        `json:"rows_waiting"`      // ended but not yet in the store
	Open            int        `json:"requests_open"`     // admitted but not ended
	Unwritten       int        `json:"records_unwritten"` // only in memory: a kill would lose them
	Lost            int64      `json:"rows_lost"`         // since this start
	FullSince       *time.Time `json:"full_since,omitempty"`
	StoreError      string     `json:"store_error,omitempty"`
	StoreErrorSince *time.Time `json:"store_error_since,omitempty"`
	JournalError    string     `json:"journal_error,omitempty"`
	Hint            string     `json:"hint,omitempty"` // what the operator can do about the cause of an error
	Found           Found      `json:"found_at_start"`
}

// Depth returns how much is waiting.
func (b *Books) Depth() Depth {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := Depth{
		JournalBytes: b.journal.size, JournalMaxBytes: b.o.MaxBytes, Waiting: b.queue.rows, Open: len(b.open),
		Unwritten: b.journal.missing, Lost: b.lost, Found: b.found,
	}
	for _, full := range []*fault{&b.memory, &b.room} {
		if full.err != nil {
			since := full.since
			d.FullSince = &since
		}
	}
	if b.moving.err != nil {
		since := b.moving.since
		d.StoreError, d.StoreErrorSince = b.moving.err.Error(), &since
	}
	journalErr := cmp.Or(b.diskErrLocked(), b.reading.err, b.ground.err)
	if journalErr != nil {
		d.JournalError = journalErr.Error()
	}
	if cause, ok := disk.Cause(cmp.Or(journalErr, b.moving.err)); ok {
		d.Hint = cause.Hint
	}
	return d
}

// fault is one kind of failure. It is logged once when it begins and once when it ends. Books.mu guards it.
type fault struct {
	begun, over string
	err         error
	since       time.Time
}

func (f *fault) set(b *Books, err error, also ...any) {
	switch {
	case err != nil && f.err == nil:
		f.since = b.o.Now()
		attrs := []any{"cause", err}
		if cause, ok := disk.Cause(err); ok {
			attrs = append(attrs, "hint", cause.Hint)
		}
		b.log.Error(f.begun, attrs...)
	case err == nil && f.err != nil:
		b.log.Info(f.over, append(also, "after", b.o.Now().Sub(f.since).Round(time.Second).String())...)
	}
	f.err = err
}
