package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"

	"ollama-api-service/internal/api"
)

// everybody is the key of the latencies of all keys together. No preview is spelled so.
const everybody = "*"

// rollup sums up the rows of one transaction, so that the tables see one statement for each sum and not for each row.
type rollup struct {
	buckets map[slot]int64
	cells   cells
	minutes int64 // since when there are sums by minute
}

// slot is a key's latency bucket.
type slot struct {
	key    string
	bucket int64
}

func newRollup(minutes int64) *rollup {
	return &rollup{map[slot]int64{}, cells{}, minutes}
}

func (u *rollup) add(r *api.Record) {
	u.cells.add(r, u.minutes)
	if r.Total == 0 {
		return // interrupted: nobody knows how long it took
	}
	bucket := int64(api.LatencyBucket(r.Total))
	u.buckets[slot{r.Key, bucket}]++
	u.buckets[slot{everybody, bucket}]++
}

// save adds the sums to the tables, each in the order of its key: two processes that add at one time then take their row
// locks in one order and cannot deadlock.
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
	order := slices.SortedFunc(maps.Keys(u.buckets), func(a, b slot) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.bucket, b.bucket))
	})
	for _, at := range order {
		if _, err := add.ExecContext(ctx, at.key, at.bucket, u.buckets[at]); err != nil {
			return err
		}
	}
	return nil
}
