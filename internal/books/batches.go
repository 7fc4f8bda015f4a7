package books

import "time"

// Batches counts the batches that were sent to the store since the start.
type Batches struct {
	Moved, Failed int64 // a batch that is retried counts as failed each time
	Rows          int64 // in the store
	Took          time.Duration
}

// add counts one attempt with this number of rows.
func (b *Batches) add(rows int, took time.Duration, err error) {
	b.Took += took
	if err != nil {
		b.Failed++
		return
	}
	b.Moved++
	b.Rows += int64(rows)
}

// Batches returns the counters.
func (b *Books) Batches() Batches {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.batches
}
