package usage

import "time"

// Batches is how rows have come to the store since the start.
type Batches struct {
	Moved, Failed int64 // a batch that is tried again has failed each time
	Rows          int64 // in the store
	Took          time.Duration
}

// add counts one try of rows that began at start.
func (b *Batches) add(rows int, took time.Duration, err error) {
	b.Took += took
	if err != nil {
		b.Failed++
		return
	}
	b.Moved++
	b.Rows += int64(rows)
}

// Batches tells how rows have come to the store.
func (b *Books) Batches() Batches {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.batches
}
