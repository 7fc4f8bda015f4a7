package books

import (
	"context"
	"time"

	"ollama-api-service/internal/api"
)

const (
	batchRows  = 2000
	tallyRows  = 1000
	tallyEvery = 10 * time.Second
	// A failing store is retried after firstRetry, then after twice as long each time, up to mostRetry.
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
	// storePatience is when a batch without a result from the store counts as failed. IDs make repeating it safe.
	storePatience = 30 * time.Second
)

// queue holds ended rows as the frames that they have in the journal: a third of a Record's memory, and they keep no text of a request's
// body alive. Books.mu guards it. A batch that is being moved is no longer modified.
type queue struct {
	batches   []*batch // oldest first
	spare     *batch
	rows      int
	ended     int64 // rows added since the start
	committed int64 // rows among them that are in the store
}

type batch struct {
	frames []byte
	rows   int
	moving bool
}

// add queues one frame and reports whether it completed a batch.
func (q *queue) add(frame []byte) (full bool) {
	n := len(q.batches)
	if n == 0 || q.batches[n-1].moving || q.batches[n-1].rows == batchRows {
		next := q.spare
		q.spare = nil
		if next == nil {
			next = &batch{}
		}
		q.batches = append(q.batches, next)
		n++
	}
	last := q.batches[n-1]
	last.frames = append(last.frames, frame...)
	last.rows++
	q.rows++
	q.ended++
	return last.rows == batchRows
}

// first returns the oldest batch and closes it to more rows. It returns nil if the queue is empty.
func (q *queue) first() *batch {
	if len(q.batches) == 0 {
		return nil
	}
	q.batches[0].moving = true
	return q.batches[0]
}

// drop removes the first batch, which is in the store.
func (q *queue) drop() {
	b := q.batches[0]
	q.batches[0] = nil
	q.batches = q.batches[1:]
	q.rows -= b.rows
	q.committed += int64(b.rows)
	*b = batch{frames: b.frames[:0]}
	q.spare = b
}

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
	for {
		select {
		case <-rows.C:
			move(b.moveRows)
		case <-b.full:
			move(b.moveRows)
		case <-counts.C:
			move(b.moveTallies)
		case reply := <-b.flushes:
			err := b.moveRows(ctx)
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

// moveRows moves the rows that had ended when it was called, with one transaction for each batch.
func (b *Books) moveRows(ctx context.Context) error {
	b.mu.Lock()
	goal := b.queue.ended
	b.mu.Unlock()
	for {
		b.mu.Lock()
		if b.queue.committed >= goal {
			b.mu.Unlock()
			return nil
		}
		first := b.queue.first()
		b.mu.Unlock()

		start := b.o.Now()
		err := b.moveBatch(ctx, first)

		b.mu.Lock()
		b.batches.add(first.rows, b.o.Now().Sub(start), err)
		if err == nil {
			b.queue.drop()
		}
		b.moving.set(b, err)
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (b *Books) moveBatch(ctx context.Context, from *batch) error {
	records := make([]api.Record, 0, from.rows)
	for rest := from.frames; len(rest) > 0; {
		payload, next, err := nextFrame(rest)
		if err != nil {
			panic("books: a queued frame is broken: " + err.Error()) // this process wrote it into its own memory
		}
		_, r, err := decode(payload)
		if err != nil {
			panic("books: a queued record cannot be read: " + err.Error())
		}
		records, rest = append(records, r), next
	}
	ctx, stop := context.WithTimeout(ctx, storePatience)
	defer stop()
	_, err := b.addRecords(ctx, records)
	return err
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
