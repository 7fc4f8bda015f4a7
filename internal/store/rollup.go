package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"

	"ollama-api-service/internal/api"
)

const (
	minuteMS = 60_000
	hourMS   = 60 * minuteMS
	// recentMS is how long minutes and hours are kept: twice the day that is asked for.
	recentMS = 48 * hourMS
	// everybody is the key of the latencies of all keys together. No preview is spelled so.
	everybody = "*"
)

// rollup sums up the rows of one transaction, so that the tables see one statement for each sum and not for each row.
type rollup struct {
	totals  map[totalKey]*totals
	minutes map[slot]int64
	hours   map[slot]int64
	buckets map[slot]int64
	periods periods
	newest  int64
}

type totalKey struct{ key, model, endpoint, outcome string }

type totals struct {
	count, prompt, completion, estimated, last int64
	total, slot, gpu                           float64 // milliseconds
}

// slot is a key's minute or hour (start in ms), or latency bucket.
type slot struct {
	key string
	at  int64
}

func newRollup() *rollup {
	return &rollup{map[totalKey]*totals{}, map[slot]int64{}, map[slot]int64{}, map[slot]int64{}, periods{}, 0}
}

func (u *rollup) add(r *api.Record) {
	id := totalKey{r.Key, r.Model, r.Endpoint, string(r.Outcome)}
	t := u.totals[id]
	if t == nil {
		t = new(totals)
		u.totals[id] = t
	}
	at := millis(r.At)
	t.count++
	t.prompt += r.PromptTokens
	t.completion += r.CompletionTokens
	t.estimated += flag(r.Estimated)
	t.total += milliseconds(r.Total)
	t.slot += milliseconds(r.Slot)
	t.gpu += milliseconds(max(r.GPU, 0))
	t.last = max(t.last, at)
	u.newest = max(u.newest, at)
	u.minutes[slot{r.Key, at - at%minuteMS}]++
	u.hours[slot{r.Key, at - at%hourMS}]++
	u.periods.add(r)
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
	if err := u.periods.save(ctx, tx); err != nil {
		return err
	}
	for _, t := range []struct {
		counts map[slot]int64
		upsert string
	}{
		{u.minutes, `INSERT INTO usage_minute (key, minute, count) VALUES ($1, $2, $3)
			ON CONFLICT (key, minute) DO UPDATE SET count = usage_minute.count + excluded.count`},
		{u.hours, `INSERT INTO usage_hour (key, hour, count) VALUES ($1, $2, $3)
			ON CONFLICT (key, hour) DO UPDATE SET count = usage_hour.count + excluded.count`},
		{u.buckets, `INSERT INTO usage_latency (key, bucket, count) VALUES ($1, $2, $3)
			ON CONFLICT (key, bucket) DO UPDATE SET count = usage_latency.count + excluded.count`},
	} {
		if err := saveCounts(ctx, tx, t.upsert, t.counts); err != nil {
			return err
		}
	}
	return u.trim(ctx, tx)
}

func (u *rollup) saveTotals(ctx context.Context, tx *sql.Tx) error {
	add, err := tx.PrepareContext(ctx, `INSERT INTO usage_total
		(key, model, endpoint, outcome, count, total_ms, prompt_tokens, completion_tokens, estimated, slot_ms, last_at, gpu_ms)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
		ON CONFLICT (key, model, endpoint, outcome) DO UPDATE SET
			count = usage_total.count + excluded.count,
			total_ms = usage_total.total_ms + excluded.total_ms,
			prompt_tokens = usage_total.prompt_tokens + excluded.prompt_tokens,
			completion_tokens = usage_total.completion_tokens + excluded.completion_tokens,
			estimated = usage_total.estimated + excluded.estimated,
			slot_ms = usage_total.slot_ms + excluded.slot_ms,
			gpu_ms = usage_total.gpu_ms + excluded.gpu_ms,
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
		_, err := add.ExecContext(ctx, id.key, id.model, id.endpoint, id.outcome, t.count, t.total, t.prompt, t.completion, t.estimated, t.slot, t.last, t.gpu)
		if err != nil {
			return err
		}
	}
	return nil
}

func saveCounts(ctx context.Context, tx *sql.Tx, upsert string, counts map[slot]int64) error {
	add, err := tx.PrepareContext(ctx, upsert)
	if err != nil {
		return err
	}
	defer add.Close()
	order := slices.SortedFunc(maps.Keys(counts), func(a, b slot) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.at, b.at))
	})
	for _, at := range order {
		if _, err := add.ExecContext(ctx, at.key, at.at, counts[at]); err != nil {
			return err
		}
	}
	return nil
}

// trim deletes minutes and hours that no question reaches any more: more than were added, but only a few at a time, so that
// no transaction is ever long. "Any more" is by the newest row added, so that the clock of the process does not matter.
func (u *rollup) trim(ctx context.Context, tx *sql.Tx) error {
	const few = 100
	if _, err := tx.ExecContext(ctx, `DELETE FROM usage_minute WHERE (key, minute) IN
		(SELECT key, minute FROM usage_minute WHERE minute < $1 LIMIT $2)`, u.newest-recentMS, few+2*len(u.minutes)); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM usage_hour WHERE (key, hour) IN
		(SELECT key, hour FROM usage_hour WHERE hour < $1 LIMIT $2)`, u.newest-recentMS, few+2*len(u.hours))
	return err
}
