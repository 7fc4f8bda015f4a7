package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// UsageQuery asks what the requests that Filter chooses used, by the dimensions of By: a row for each combination, the earliest
// hour or day first and within it the most requests first, at most Limit.
type UsageQuery struct {
	api.RequestFilter
	By    []api.Dimension
	Limit int
}

// Usage is the answer to a UsageQuery. Total and Groups count all groups, also those beyond the limit.
type Usage struct {
	Rows   []api.UsageGroup
	Total  api.Usage
	Groups int64
}

// Usage sums up the books from rollups. What a span cuts off of an hour at its ends is summed up from the rows.
func (s *Store) Usage(ctx context.Context, q UsageQuery) (Usage, error) {
	b := &builder{}
	query := q.build(b)
	var out Usage
	err := s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, query, func(r *sql.Rows) error {
			var whole int
			var group api.UsageGroup
			var start sql.NullInt64
			var u used
			into := []any{&whole}
			for _, d := range q.By {
				into = append(into, place(&group, d, &start))
			}
			var groups int64
			into = append(into, &groups, &u.count, &u.timed, &u.total, &u.firstBytes, &u.firstByte, &u.prompt, &u.completion, &u.estimated, &u.slot,
				&u.in, &u.out, &u.last, &u.gpu)
			if err := r.Scan(into...); err != nil {
				return err
			}
			if whole == 1 {
				out.Total, out.Groups = u.usage(), groups
				return nil
			}
			group.Start, group.Usage = nullInstant(start), u.usage()
			out.Rows = append(out.Rows, group)
			return nil
		}, b.args...)
	})
	return out, err
}

// place is where a dimension of a row is read into.
func place(g *api.UsageGroup, d api.Dimension, start *sql.NullInt64) any {
	switch d {
	case api.ByKey:
		return &g.Key
	case api.ByModel:
		return &g.Model
	case api.ByEndpoint:
		return &g.Endpoint
	case api.ByBackend:
		return &g.Backend
	case api.ByOutcome:
		return &g.Outcome
	}
	return start
}

func (u *used) usage() api.Usage {
	out := api.Usage{
		Requests: u.count, PromptTokens: u.prompt, CompletionTokens: u.completion, Estimated: u.estimated, SlotMS: u.slot, GPUMS: u.gpu,
		AverageSeconds: average(u.total, u.timed), AverageFirstByte: average(u.firstByte, u.firstBytes), BytesIn: u.in, BytesOut: u.out,
	}
	if u.count > 0 {
		last := instant(u.last)
		out.LastRequest = &last
	}
	return out
}

// average is in seconds.
func average(ms float64, n int64) *float64 {
	if n == 0 {
		return nil
	}
	seconds := ms / 1000 / float64(n)
	return &seconds
}

// builder collects the parameters of a statement that is put together from constant pieces.
type builder struct{ args []any }

func (b *builder) param(v any) string {
	b.args = append(b.args, v)
	return fmt.Sprint("$", len(b.args))
}

// within is the condition that column lies in [from, to); to < 0 is no end.
func (b *builder) within(column string, from, to int64) string {
	cond := column + " >= " + b.param(from)
	if to >= 0 {
		cond += " AND " + column + " < " + b.param(to)
	}
	return cond
}

// filter is the condition for the names that f chooses, with an AND in front.
func (b *builder) filter(f *api.RequestFilter) string {
	var cond strings.Builder
	for _, c := range []struct {
		column string
		names  []string
	}{{"key", f.Keys}, {"model", f.Models}, {"endpoint", f.Endpoints}, {"backend", f.Backends}, {"outcome", f.Outcomes}} {
		if len(c.names) == 0 {
			continue
		}
		params := make([]string, len(c.names))
		for i, name := range c.names {
			params[i] = b.param(name)
		}
		cond.WriteString(" AND " + c.column + " IN (" + strings.Join(params, ", ") + ")")
	}
	return cond.String()
}

// sums are the columns of used in the order in which they are read, of a cell, of a row and summed up.
const (
	cellSums = `count, timed, total_ms, first_bytes, ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, last_at, gpu_ms`
	rowSums  = `1 AS count, CASE WHEN total_ms > 0 THEN 1 ELSE 0 END AS timed, total_ms, CASE WHEN ttfb_ms IS NULL THEN 0 ELSE 1 END AS first_bytes,
		COALESCE(ttfb_ms, 0.0) AS ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, at AS last_at,
		COALESCE(gpu_ms, 0.0) AS gpu_ms`
	summed = `SUM(count) AS count, SUM(timed) AS timed, SUM(total_ms) AS total_ms, SUM(first_bytes) AS first_bytes, SUM(ttfb_ms) AS ttfb_ms,
		SUM(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens, SUM(estimated) AS estimated, SUM(slot_ms) AS slot_ms,
		SUM(bytes_in) AS bytes_in, SUM(bytes_out) AS bytes_out, MAX(last_at) AS last_at, SUM(gpu_ms) AS gpu_ms`
	total = `COUNT(*), COALESCE(SUM(count), 0), COALESCE(SUM(timed), 0), COALESCE(SUM(total_ms), 0.0), COALESCE(SUM(first_bytes), 0), COALESCE(SUM(ttfb_ms), 0.0),
		COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), COALESCE(SUM(estimated), 0), COALESCE(SUM(slot_ms), 0.0),
		COALESCE(SUM(bytes_in), 0), COALESCE(SUM(bytes_out), 0), COALESCE(MAX(last_at), 0), COALESCE(SUM(gpu_ms), 0.0)`
)

// build is the statement: the groups are summed up once, and both their total and the first of them are read.
func (q *UsageQuery) build(b *builder) string {
	names := make([]string, len(q.By)) // of the dimensions, as columns
	none := make([]string, len(q.By))
	grouped := make([]string, len(q.By))
	order := []string{"1 DESC"}
	for i, d := range q.By {
		names[i], none[i], grouped[i] = "d_"+string(d), "NULL", string(d)+" AS d_"+string(d)
		if width := q.width(d); width > 0 {
			grouped[i] = fmt.Sprintf("at - at %% %d AS %s", width, names[i])
			order = append(order, fmt.Sprint(i+2))
		}
	}
	order = append(order, fmt.Sprint(len(q.By)+3, " DESC"))
	for i := range q.By {
		order = append(order, fmt.Sprint(i+2))
	}
	by := " HAVING COUNT(*) > 0"
	if len(names) > 0 {
		by = " GROUP BY " + strings.Join(names, ", ")
	}
	list := func(columns ...string) string { return strings.Join(columns, ", ") }
	sorted := " ORDER BY " + strings.Join(order, ", ")
	return `WITH grouped AS MATERIALIZED (SELECT ` + list(append(grouped, summed)...) + ` FROM (` + q.parts(b) + `) AS used` + by + `)
		SELECT ` + list(append(append([]string{"1"}, none...), total)...) + ` FROM grouped
		UNION ALL
		SELECT * FROM (SELECT ` + list(append(append([]string{"0"}, names...), "1", cellSums)...) + ` FROM grouped` + sorted + ` LIMIT ` + b.param(q.Limit) + `) AS first` + sorted
}

func (q *UsageQuery) width(d api.Dimension) int64 {
	switch d {
	case api.ByHour:
		return hourMS
	case api.ByDay:
		return dayMS
	}
	return 0
}

// parts cuts [From, To) into whole days, the hours around them and the rows around those, and selects each piece from where it
// is cheapest. By hour there are no whole days.
func (q *UsageQuery) parts(b *builder) string {
	const names = "key, model, endpoint, backend, outcome, "
	var parts []string
	rowsIn := func(from, to int64) {
		parts = append(parts, `SELECT at, `+names+rowSums+` FROM requests WHERE `+b.within("at", from, to)+b.filter(&q.RequestFilter))
	}
	cellsIn := func(width, from, to int64) {
		parts = append(parts, `SELECT start AS at, `+names+cellSums+` FROM usage_period WHERE width = `+b.param(width)+` AND `+
			b.within("start", from, to)+b.filter(&q.RequestFilter))
	}
	from, to := span(&q.RequestFilter)
	firstHour, lastHour := up(from, hourMS), toward(to, hourMS)
	if to >= 0 && firstHour >= lastHour { // less than two hours meet in it
		rowsIn(from, to)
		return strings.Join(parts, "\n\t\tUNION ALL ")
	}
	rowsIn(from, firstHour)
	firstDay, lastDay := up(firstHour, dayMS), toward(lastHour, dayMS)
	if slices.Contains(q.By, api.ByHour) || to >= 0 && firstDay >= lastDay {
		cellsIn(hourMS, firstHour, lastHour)
	} else {
		cellsIn(hourMS, firstHour, firstDay)
		cellsIn(dayMS, firstDay, lastDay)
		if to >= 0 {
			cellsIn(hourMS, lastDay, lastHour)
		}
	}
	if to >= 0 {
		rowsIn(lastHour, to)
	}
	return strings.Join(parts, "\n\t\tUNION ALL ")
}

// span is the filter's time in milliseconds; -1 is no end.
func span(f *api.RequestFilter) (from, to int64) {
	to = -1
	if !f.From.IsZero() {
		from = max(0, upMillis(f.From))
	}
	if !f.To.IsZero() {
		to = max(from, upMillis(f.To))
	}
	return from, to
}

// upMillis is the first millisecond that is not before t: the books know no smaller part.
func upMillis(t time.Time) int64 {
	return millis(t.Add(time.Millisecond - time.Nanosecond))
}

func toward(to, step int64) int64 {
	if to < 0 {
		return to
	}
	return down(to, step)
}
