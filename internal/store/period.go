package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"

	"ollama-api-service/internal/api"
)

const dayMS = 24 * hourMS

// widths are the periods that usage_period holds, in milliseconds.
var widths = [...]int64{hourMS, dayMS}

// cell is one row of usage_period.
type cell struct {
	width, start                          int64
	key, model, endpoint, backend, result string
}

func (c cell) compare(o cell) int {
	return cmp.Or(cmp.Compare(c.width, o.width), cmp.Compare(c.start, o.start), cmp.Compare(c.key, o.key), cmp.Compare(c.model, o.model),
		cmp.Compare(c.endpoint, o.endpoint), cmp.Compare(c.backend, o.backend), cmp.Compare(c.result, o.result))
}

// used is what a cell sums up.
type used struct {
	count, timed, firstBytes, prompt, completion, estimated, in, out, last int64
	total, firstByte, slot                                                 float64 // milliseconds
}

// periods sums up the rows of one transaction by hour and day.
type periods map[cell]*used

func (p periods) add(r *api.Record) {
	at := millis(r.At)
	for _, width := range widths {
		id := cell{width, down(at, width), r.Key, r.Model, r.Endpoint, r.Backend, string(r.Outcome)}
		u := p[id]
		if u == nil {
			u = new(used)
			p[id] = u
		}
		u.count++
		if r.Total > 0 {
			u.timed++
			u.total += milliseconds(r.Total)
		}
		if r.FirstByte > 0 {
			u.firstBytes++
			u.firstByte += milliseconds(r.FirstByte)
		}
		u.prompt += r.PromptTokens
		u.completion += r.CompletionTokens
		u.estimated += flag(r.Estimated)
		u.slot += milliseconds(r.Slot)
		u.in += r.BytesIn
		u.out += r.BytesOut
		u.last = max(u.last, at)
	}
}

// save adds the sums to the table, in the order of its key.
func (p periods) save(ctx context.Context, tx *sql.Tx) error {
	add, err := tx.PrepareContext(ctx, `INSERT INTO usage_period (width, start, key, model, endpoint, backend, outcome, count, timed, total_ms,
		first_bytes, ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, last_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
		ON CONFLICT (width, start, key, model, endpoint, backend, outcome) DO UPDATE SET
			count = usage_period.count + excluded.count,
			timed = usage_period.timed + excluded.timed,
			total_ms = usage_period.total_ms + excluded.total_ms,
			first_bytes = usage_period.first_bytes + excluded.first_bytes,
			ttfb_ms = usage_period.ttfb_ms + excluded.ttfb_ms,
			prompt_tokens = usage_period.prompt_tokens + excluded.prompt_tokens,
			completion_tokens = usage_period.completion_tokens + excluded.completion_tokens,
			estimated = usage_period.estimated + excluded.estimated,
			slot_ms = usage_period.slot_ms + excluded.slot_ms,
			bytes_in = usage_period.bytes_in + excluded.bytes_in,
			bytes_out = usage_period.bytes_out + excluded.bytes_out,
			last_at = CASE WHEN excluded.last_at > usage_period.last_at THEN excluded.last_at ELSE usage_period.last_at END`)
	if err != nil {
		return err
	}
	defer add.Close()
	for _, c := range slices.SortedFunc(maps.Keys(p), cell.compare) {
		u := p[c]
		_, err := add.ExecContext(ctx, c.width, c.start, c.key, c.model, c.endpoint, c.backend, c.result, u.count, u.timed, u.total,
			u.firstBytes, u.firstByte, u.prompt, u.completion, u.estimated, u.slot, u.in, u.out, u.last)
		if err != nil {
			return err
		}
	}
	return nil
}
