package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// UsageQuery asks for the usage of the requests that match the filter, grouped by the dimensions of By: a row for each combination, the
// earliest hour, day, week or month first and, within it, the most requests first; at most Limit rows.
type UsageQuery struct {
	api.RequestFilter
	By    []api.Dimension
	Limit int
	Zone  *time.Location // the zone of days, weeks and months; nil means UTC
}

// Usage is the answer to a UsageQuery. Total and Groups include the groups beyond the limit. From and To are those of the query; if they
// cut a period of which only the sum is left, they are moved to its ends.
type Usage struct {
	Rows     []api.UsageGroup
	Total    api.Usage
	Groups   int64
	From, To time.Time
}

// Usage computes the answer from rollups. The parts of a span that are not whole periods are computed from the rows.
func (s *Store) Usage(ctx context.Context, q UsageQuery) (Usage, error) {
	out := Usage{From: q.From, To: q.To}
	err := s.read(ctx, func(tx *sql.Tx) error {
		k, err := readKept(ctx, tx)
		if err != nil {
			return err
		}
		p, from, to, err := q.plan(k)
		if err != nil {
			return err
		}
		out.moved(&q.RequestFilter, k, from, to)
		if len(p.runs)+len(p.rows) == 0 {
			return nil
		}
		if q.paged(&p) {
			return s.usageByPage(ctx, tx, &q, &p, &out)
		}
		return q.bySum(ctx, tx, &p, &out)
	})
	return out, err
}

// bySum answers the plan with one statement.
func (q *UsageQuery) bySum(ctx context.Context, tx *sql.Tx, p *plan, out *Usage) error {
	b := &builder{}
	query := q.build(p, b)
	return rows(ctx, tx, query, func(r *sql.Rows) error {
		var whole int
		var group api.UsageGroup
		var start sql.NullInt64
		var u used
		dest := []any{&whole}
		for _, d := range q.By {
			dest = append(dest, place(&group, d, &start))
		}
		var groups int64
		if err := r.Scan(append(append(dest, &groups), u.into()...)...); err != nil {
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
}

// moved sets the actual start and end of the span if they differ from those of the filter.
func (u *Usage) moved(f *api.RequestFilter, k kept, from, to int64) {
	asked, until := span(f)
	if k.end > 0 && asked < max(k.rows, k.rollups) && from != max(asked, k.first) {
		u.From = instant(from)
	}
	if until >= 0 && until < k.rows && to > until {
		u.To = instant(to)
	}
}

// place returns a pointer to the field for a dimension of a row.
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
		Requests: u.count, PromptTokens: u.prompt, CompletionTokens: u.completion, Estimated: u.estimated,
		SlotMS: u.slot, GPUMS: u.gpu, QueueMS: u.queue,
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

// builder collects the parameters of a statement that is composed of constant pieces.
type builder struct{ args []any }

func (b *builder) param(v any) string {
	b.args = append(b.args, v)
	return placeholder(len(b.args))
}

// list returns the placeholders of all parameters, separated by commas.
func (b *builder) list() string {
	all := make([]string, len(b.args))
	for i := range all {
		all[i] = placeholder(i + 1)
	}
	return strings.Join(all, ", ")
}

// params adds several parameters, separated by commas.
func (b *builder) params(values ...int64) string {
	var list []string
	for _, v := range values {
		list = append(list, b.param(v))
	}
	return strings.Join(list, ", ")
}

// within is the condition that column is in [from, to). A negative to means no end.
func (b *builder) within(column string, from, to int64) string {
	cond := column + " >= " + b.param(from)
	if to >= 0 {
		cond += " AND " + column + " < " + b.param(to)
	}
	return cond
}

// filter is the condition for the names in f, starting with AND.
func (b *builder) filter(f *api.RequestFilter) string {
	var cond strings.Builder
	for _, c := range []struct {
		column string
		names  []string
	}{{"key", f.Keys}, {"model", f.Models}, {"endpoint", f.Endpoints}, {"backend", f.Backends}, {"outcome", f.Outcomes}} {
		cond.WriteString(b.in(c.column, c.names))
	}
	return cond.String()
}

// in is the condition that column has one of the names, starting with AND. It is empty without names.
func (b *builder) in(column string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	params := make([]string, len(names))
	for i, name := range names {
		params[i] = b.param(name)
	}
	return " AND " + column + " IN (" + strings.Join(params, ", ") + ")"
}

// The columns of used in the order in which they are read: of a cell, of a row, and summed up.
const (
	cellSums = `count, timed, total_ms, first_bytes, ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, last_at, gpu_ms, queue_ms`
	rowSums  = `1 AS count, CASE WHEN total_ms > 0 THEN 1 ELSE 0 END AS timed, total_ms, CASE WHEN ttfb_ms IS NULL THEN 0 ELSE 1 END AS first_bytes,
		COALESCE(ttfb_ms, 0.0) AS ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, at AS last_at,
		COALESCE(gpu_ms, 0.0) AS gpu_ms, COALESCE(queue_ms, 0.0) AS queue_ms`
	summed = `SUM(count) AS count, SUM(timed) AS timed, SUM(total_ms) AS total_ms, SUM(first_bytes) AS first_bytes, SUM(ttfb_ms) AS ttfb_ms,
		SUM(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens, SUM(estimated) AS estimated, SUM(slot_ms) AS slot_ms,
		SUM(bytes_in) AS bytes_in, SUM(bytes_out) AS bytes_out, MAX(last_at) AS last_at, SUM(gpu_ms) AS gpu_ms, SUM(queue_ms) AS queue_ms`
	totalSums = `COUNT(*), COALESCE(SUM(count), 0), COALESCE(SUM(timed), 0), COALESCE(SUM(total_ms), 0.0), COALESCE(SUM(first_bytes), 0), COALESCE(SUM(ttfb_ms), 0.0),
		COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), COALESCE(SUM(estimated), 0), COALESCE(SUM(slot_ms), 0.0),
		COALESCE(SUM(bytes_in), 0), COALESCE(SUM(bytes_out), 0), COALESCE(MAX(last_at), 0), COALESCE(SUM(gpu_ms), 0.0), COALESCE(SUM(queue_ms), 0.0)`
)

// plan cuts the query's span into the parts that answer it.
func (q *UsageQuery) plan(k kept) (p plan, from, to int64, err error) {
	p = plan{kept: k, sources: k.sources(q.needs(), len(q.Keys) > 0)}
	from, to = span(&q.RequestFilter)
	if to < 0 || to > k.end {
		to = k.end
	}
	from = max(from, k.first, k.rollups)
	if from >= to {
		return p, from, to, nil
	}
	switch {
	case slices.Contains(q.By, api.ByHour):
		// There is no answer by hour for a time without hours.
		for _, s := range p.sources {
			if s.width == hourMS {
				from = max(from, s.since)
			}
		}
		if from >= to {
			return p, from, to, nil
		}
		from, to = p.before(from), p.after(to)
		p.cutEach(hourMS, from, to)
	case !q.labelled():
		from, to = p.before(from), p.after(to)
		p.cut(from, to, ownTime)
	case slices.Contains(q.By, api.ByDay) && (q.Zone == nil || q.Zone == time.UTC):
		from, to = p.before(from), p.after(to)
		p.cutEach(dayMS, from, to)
	default:
		from, to = p.before(from), p.after(to)
		err = p.cutDates(q.By[slices.IndexFunc(q.By, api.Dimension.IsTime)], cmp.Or(q.Zone, time.UTC), from, to)
	}
	return p, from, to, err
}

// labelled reports whether groups are separated by time.
func (q *UsageQuery) labelled() bool { return slices.ContainsFunc(q.By, api.Dimension.IsTime) }

// mostRuns limits the parameters of a statement: SQLite allows 32,766.
const mostRuns = 6000

// cutDates cuts [from, to) at the start of each day, week or month of a zone, as precisely as the data allows.
func (p *plan) cutDates(by api.Dimension, zone *time.Location, from, to int64) error {
	for at := by.Begin(time.UnixMilli(from).In(zone)); from < to; {
		next := by.Next(at)
		if !next.After(at) { // the loop would never end
			return fmt.Errorf("the %s after %v begins at %v", by, at, next)
		}
		end := min(p.before(millis(next)), to)
		p.cut(from, end, millis(at))
		from, at = max(from, end), next
		if len(p.runs)+len(p.rows) > mostRuns {
			return api.Errorf(api.CodeBadRequest, "too many days for a zone that is not UTC: choose a shorter time range, or leave the zone out")
		}
	}
	return nil
}

// needs returns the dimensions that a cell must have to answer the query.
func (q *UsageQuery) needs() (needs kind) {
	for _, n := range []struct {
		by    api.Dimension
		names []string
		kind  kind
	}{
		{api.ByKey, q.Keys, byKey},
		{api.ByModel, q.Models, byModel},
		{api.ByEndpoint, q.Endpoints, byEndpoint},
		{api.ByBackend, q.Backends, byBackend},
		{api.ByOutcome, q.Outcomes, byOutcome},
	} {
		if len(n.names) > 0 || slices.Contains(q.By, n.by) {
			needs |= n.kind
		}
	}
	return needs
}

// build returns the statement: it groups once, and reads both the total and the first groups from the result.
func (q *UsageQuery) build(p *plan, b *builder) string {
	var names, none, columns, order []string
	labelled := false
	order = append(order, "1 DESC")
	for i, d := range q.By {
		none = append(none, "NULL")
		if d.IsTime() {
			names, labelled, order = append(names, "at"), true, append(order, placeOf(i))
			continue
		}
		names, columns = append(names, string(d)), append(columns, string(d)+", ")
	}
	order = append(order, fmt.Sprint(len(q.By)+3, " DESC"))
	for i := range q.By {
		order = append(order, placeOf(i))
	}
	by := " HAVING COUNT(*) > 0"
	if len(names) > 0 {
		by = " GROUP BY " + strings.Join(names, ", ")
	}
	list := func(columns ...string) string { return strings.Join(columns, ", ") }
	sorted := " ORDER BY " + strings.Join(order, ", ")
	dimensions := strings.Join(columns, "")
	with, cellsAndRows := p.build(b, &q.RequestFilter, labelled, dimensions+cellSums, dimensions+rowSums)
	return `WITH RECURSIVE ` + with + `,
		grouped AS MATERIALIZED (SELECT ` + list(append(slices.Clone(names), summed)...) + ` FROM (` + cellsAndRows + `) AS used` + by + `)
		SELECT ` + list(append(append([]string{"1"}, none...), totalSums)...) + ` FROM grouped
		UNION ALL
		SELECT * FROM (SELECT ` + list(append(append([]string{"0"}, names...), "1", cellSums)...) + ` FROM grouped` + sorted + ` LIMIT ` + b.param(q.Limit) + `) AS first` + sorted
}

// placeOf is the column number of the i-th dimension in the answer, for ORDER BY.
func placeOf(i int) string { return strconv.Itoa(i + 2) }

// span returns the filter's time range in milliseconds. -1 means no end.
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

// upMillis is the first millisecond that is not before t: rows have no finer times.
func upMillis(t time.Time) int64 {
	return millis(t.Add(time.Millisecond - time.Nanosecond))
}
