package books

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"ollama-api-service/internal/api"
)

const (
	// batchRows is the number of waiting rows at which a batch moves at once. Batches grow with the number of rows that wait, up to
	// mostRows, as long as the store needs less than batchTime for one: changes of keys wait for it. They are never smaller, because each
	// has a cost of its own.
	batchRows  = 2000
	mostRows   = 16_000
	batchTime  = time.Second
	tallyRows  = 1000
	tallyEvery = 10 * time.Second
	// A failing store is retried after firstRetry, then after twice as long each time, up to mostRetry.
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
	// storePatience is when a batch without a result from the store counts as failed. IDs make repeating it safe.
	storePatience = 30 * time.Second
)

// keepStore moves rows and tallies to the store until ctx is done.
func (b *Books) keepStore(ctx context.Context) {
	rows, counts := time.NewTicker(b.o.MoveEvery), time.NewTicker(tallyEvery)
	defer rows.Stop()
	defer counts.Stop()
	var retry pause
	move := func(what func(context.Context) error) {
		if now := b.o.Now(); retry.over(now) {
			retry.after(what(ctx), now)
		}
	}
	moveRows := func(ctx context.Context) error { return b.moveRows(ctx, counts.C) }
	for {
		select {
		case <-rows.C:
			move(moveRows)
		case <-b.full:
			move(moveRows)
		case <-counts.C:
			move(b.moveTallies)
		case reply := <-b.flushes:
			err := moveRows(ctx)
			if err == nil {
				err = b.moveTallies(ctx)
			}
			retry.after(err, b.o.Now())
			reply <- err
		case <-ctx.Done():
			return
		}
	}
}

// pause is how long a failing store is not called.
type pause struct {
	length time.Duration
	until  time.Time
}

func (p *pause) over(now time.Time) bool { return !now.Before(p.until) }

func (p *pause) after(err error, now time.Time) {
	if err == nil {
		*p = pause{}
		return
	}
	p.length = min(max(2*p.length, firstRetry), mostRetry)
	p.until = now.Add(p.length)
}

// pace is how fast the store takes rows.
type pace struct {
	size   int     // rows in the next batch
	second float64 // rows in a second, of the last batches; 0 if unknown
}

// note adjusts the pace to a batch.
func (p *pace) note(rows int, took time.Duration, err error) {
	switch {
	case err != nil || took > batchTime:
		p.size = max(p.size/2, batchRows)
	case rows > p.size-chunkRows && took < batchTime/2:
		p.size = min(2*p.size, mostRows)
	}
	if err != nil || took <= 0 {
		return
	}
	now := float64(rows) / took.Seconds()
	if p.second > 0 {
		now = (3*p.second + now) / 4
	}
	p.second = now
}

// moveRows moves the rows that had ended when it was called, with one transaction for each batch. If that takes long, it also moves
// tallies when they are due.
func (b *Books) moveRows(ctx context.Context, counts <-chan time.Time) error {
	b.mu.Lock()
	goal := b.queue.ended
	b.mu.Unlock()
	for {
		b.mu.Lock()
		if b.queue.stored >= goal {
			b.mu.Unlock()
			return nil
		}
		chunks, rows := b.queue.take(b.pace.size)
		b.mu.Unlock()

		start := b.o.Now()
		records, err := b.read(chunks, rows)
		if err == nil {
			err = b.moveBatch(ctx, chunks, records, start)
		}
		if err != nil {
			return err
		}
		select {
		case <-counts:
			_ = b.moveTallies(ctx) // a failure is reported, and they are kept
		default:
		}
	}
}

func (b *Books) moveBatch(ctx context.Context, chunks []*chunk, records []api.Record, start time.Time) error {
	limited, stop := context.WithTimeout(ctx, storePatience)
	defer stop()
	_, err := b.addRecords(limited, records)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue.done(chunks, err == nil)
	if err != nil && ctx.Err() != nil {
		return err // the books stop, which is no fault of the store
	}
	took := b.o.Now().Sub(start)
	b.batches.add(len(records), took, err)
	b.pace.note(len(records), took, err)
	b.moving.set(b, err)
	return err
}

// read returns the records of chunks, from memory or from their files.
func (b *Books) read(chunks []*chunk, rows int) (records []api.Record, err error) {
	records = make([]api.Record, 0, rows)
	for _, c := range chunks {
		if c.kept {
			records = appendEnds(records, c.frames)
		} else if records, err = b.readBack(records, c); err != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("the journal cannot be read: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading.set(b, err); err != nil {
		b.queue.done(chunks, false)
	}
	return records, err
}

// appendEnds appends the records of frames that this process has written into its memory.
func appendEnds(records []api.Record, frames []byte) []api.Record {
	for len(frames) > 0 {
		_, r, rest, err := readFrame(frames)
		if err != nil {
			panic("books: a queued record cannot be read: " + err.Error())
		}
		records, frames = append(records, r), rest
	}
	return records
}

// readBack appends the records of a chunk that is only in its file. Rows in unreadable places are lost.
func (b *Books) readBack(records []api.Record, c *chunk) ([]api.Record, error) {
	f, err := os.Open(c.at.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	had := len(records)
	frames := io.NewSectionReader(f, c.from, c.to-c.from)
	err = b.readFrames(c.at.path, frames, c.from, &Found{}, func(kind byte, r api.Record, _, _ int64) error {
		if kind == kindEnd {
			records = append(records, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if gone := c.rows - (len(records) - had); gone > 0 && !c.damaged {
		c.damaged = true // it may be read again
		b.mu.Lock()
		b.lost += int64(gone)
		c.at.damaged = true
		b.mu.Unlock()
		b.log.Error("rows are lost, because their part of the journal is damaged; the file is kept as *"+damagedSuffix+": check the disk, then delete it",
			"rows", gone, "file", c.at.path)
	}
	return records, nil
}

// moveTallies moves the counters. Counters that the store refuses are kept; if only its answer was lost, they count twice.
func (b *Books) moveTallies(ctx context.Context) error {
	counts := b.tallies.take()
	var err error
	for len(counts) > 0 && err == nil {
		n := min(len(counts), tallyRows)
		limited, stop := context.WithTimeout(ctx, storePatience)
		err = b.addTallies(limited, counts[:n])
		stop()
		if err == nil {
			counts = counts[n:]
		}
		b.mu.Lock()
		b.counting.set(b, err)
		b.mu.Unlock()
	}
	for _, t := range counts {
		b.tallies.add(minuteOf(t.Minute), t.Who, t.What, t.Count)
	}
	return err
}
