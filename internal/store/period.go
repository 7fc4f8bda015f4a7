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
	total, firstByte, slot, gpu                                            float64 // milliseconds
}

// periods sums up the rows of one transaction by hour; save adds the days.
type periods map[cell]*used

func (p periods) add(r *api.Record) {
	at := millis(r.At)
	u := p.cell(cell{hourMS, down(at, hourMS), r.Key, r.Model, r.Endpoint, r.Backend, string(r.Outcome)})
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
	u.gpu += milliseconds(max(r.GPU, 0))
	u.in += r.BytesIn
	u.out += r.BytesOut
	u.last = max(u.last, at)
}

func (p periods) cell(id cell) *used {
	u := p[id]
	if u == nil {
		u = new(used)
		p[id] = u
	}
	return u
}

// addDays sums the hours up to days: a transaction has thousands of rows, but few hours.
func (p periods) addDays() {
	for _, hour := range slices.Collect(maps.Keys(p)) {
		id, from := hour, p[hour]
		id.width, id.start = dayMS, down(hour.start, dayMS)
		u := p.cell(id)
		u.count += from.count
		u.timed += from.timed
		u.firstBytes += from.firstBytes
		u.prompt += from.prompt
		u.completion += from.completion
		u.estimated += from.estimated
		u.in += from.in
		u.out += from.out
		u.last = max(u.last, from.last)
		u.total += from.total
		u.firstByte += from.firstByte
		u.slot += from.slot
		u.gpu += from.gpu
	}
}

// save adds the sums to the table, in the order of its key.
func (p periods) save(ctx context.Context, tx *sql.Tx) error {
	p.addDays()
	add, err := tx.PrepareContext(ctx, `INSERT INTO usage_period (width, start, key, model, endpoint, backend, outcome, count, timed, total_ms,
		first_bytes, ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, last_at, gpu_ms)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
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
			gpu_ms = usage_period.gpu_ms + excluded.gpu_ms,
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
			u.firstBytes, u.firstByte, u.prompt, u.completion, u.estimated, u.slot, u.in, u.out, u.last, u.gpu)
		if err != nil {
			return err
		}
	}
	return nil
}
