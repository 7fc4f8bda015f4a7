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
	totals  map[totalKey]*totals
	buckets map[slot]int64
	cells   cells
}

type totalKey struct{ key, model, endpoint, outcome string }

type totals struct {
	count, prompt, completion, estimated, last int64
	total, slot                                float64 // milliseconds
}

// slot is a key's latency bucket.
type slot struct {
	key    string
	bucket int64
}

func newRollup() *rollup {
	return &rollup{map[totalKey]*totals{}, map[slot]int64{}, cells{}}
}

func (u *rollup) add(r *api.Record) {
	id := totalKey{r.Key, r.Model, r.Endpoint, string(r.Outcome)}
	t := u.totals[id]
	if t == nil {
		t = new(totals)
		u.totals[id] = t
	}
	t.count++
	t.prompt += r.PromptTokens
	t.completion += r.CompletionTokens
	t.estimated += flag(r.Estimated)
	t.total += milliseconds(r.Total)
	t.slot += milliseconds(r.Slot)
	t.last = max(t.last, millis(r.At))
	u.cells.add(r)
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
	if len(u.totals) == 0 {
		return nil
	}
	if err := u.saveTotals(ctx, tx); err != nil {
		return err
	}
	if err := u.cells.save(ctx, tx); err != nil {
		return err
	}
	return u.saveBuckets(ctx, tx)
}

func (u *rollup) saveTotals(ctx context.Context, tx *sql.Tx) error {
	add, err := tx.PrepareContext(ctx, `INSERT INTO usage_total
		(key, model, endpoint, outcome, count, total_ms, prompt_tokens, completion_tokens, estimated, slot_ms, last_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (key, model, endpoint, outcome) DO UPDATE SET
			count = usage_total.count + excluded.count,
			total_ms = usage_total.total_ms + excluded.total_ms,
			prompt_tokens = usage_total.prompt_tokens + excluded.prompt_tokens,
			completion_tokens = usage_total.completion_tokens + excluded.completion_tokens,
			estimated = usage_total.estimated + excluded.estimated,
			slot_ms = usage_total.slot_ms + excluded.slot_ms,
			last_at = CASE WHEN excluded.last_at > usage_total.last_at THEN excluded.last_at ELSE usage_total.last_at END`)
	if err != nil {
		return err
	}
	defer add.Close()
	order := slices.SortedFunc(maps.Keys(u.totals), func(a, b totalKey) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.model, b.model), cmp.Compare(a.endpoint, b.endpoint), cmp.Compare(a.outcome, b.outcome))
	})
	for _, id := range order {
		t := u.totals[id]
		_, err := add.ExecContext(ctx, id.key, id.model, id.endpoint, id.outcome, t.count, t.total, t.prompt, t.completion, t.estimated, t.slot, t.last)
		if err != nil {
			return err
		}
	}
	return nil
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
