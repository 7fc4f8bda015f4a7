package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"

	"ollama-api-service/internal/api"
)

// allKeys is the key of the latencies of all keys together. No preview has this value.
const allKeys = "*"

// rollup sums up the rows of one transaction, so that each sum needs one statement, and not each row.
type rollup struct {
	buckets map[latencySlot]int64
	cells   cells
	minutes int64 // the time from which on sums by minute exist
}

// latencySlot is a latency bucket of a key.
type latencySlot struct {
	key    string
	bucket int64
}

func newRollup(minutes int64) *rollup {
	return &rollup{map[latencySlot]int64{}, cells{}, minutes}
}

func (u *rollup) add(r *api.Record) {
	u.cells.add(r, u.minutes)
	if r.Total == 0 {
		return // interrupted: the duration is unknown
	}
	bucket := int64(api.LatencyBucket(r.Total))
	u.buckets[latencySlot{r.Key, bucket}]++
	u.buckets[latencySlot{allKeys, bucket}]++
}

// save adds the sums to the tables in the order of their keys, so that two processes that write at the same time lock rows in the same
// order and cannot deadlock.
func (u *rollup) save(ctx context.Context, tx *sql.Tx) error {
	if len(u.cells) == 0 {
		return nil
	}
	if err := u.cells.save(ctx, tx); err != nil {
		return err
	}
	return u.saveBuckets(ctx, tx)
}

func (u *rollup) saveBuckets(ctx context.Context, tx *sql.Tx) error {
	add, err := tx.PrepareContext(ctx, `INSERT INTO usage_latency (key, bucket, count) VALUES ($1, $2, $3)
		ON CONFLICT (key, bucket) DO UPDATE SET count = usage_latency.count + excluded.count`)
	if err != nil {
		return err
	}
	defer add.Close()
	order := slices.SortedFunc(maps.Keys(u.buckets), func(a, b latencySlot) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.bucket, b.bucket))
	})
	for _, at := range order {
		if _, err := add.ExecContext(ctx, at.key, at.bucket, u.buckets[at]); err != nil {
			return err
		}
	}
	return nil
}
