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

// UsageQuery asks what the requests that Filter chooses used, by the dimensions of By: a row for each combination, the earliest
// hour, day, week or month first and within it the most requests first, at most Limit.
type UsageQuery struct {
	api.RequestFilter
	By    []api.Dimension
	Limit int
	Zone  *time.Location // whose days, weeks and months are meant; nil is UTC
}

// Usage is the answer to a UsageQuery. Total and Groups count all groups, also those beyond the limit. From and To are those of the
// query; where they cut a period of which only the sum is left, they are moved to its ends.
type Usage struct {
	Rows     []api.UsageGroup
	Total    api.Usage
	Groups   int64
	From, To time.Time
}

// Usage sums up the books from rollups. What a span cuts off of a period at its ends is summed up from the rows.
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

// bySum answers from the plan by one statement.
func (q *UsageQuery) bySum(ctx context.Context, tx *sql.Tx, p *plan, out *Usage) error {
	b := &builder{}
	query := q.build(p, b)
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
		if err := r.Scan(append(append(into, &groups), u.into()...)...); err != nil {
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

// moved says where the span begins and ends, if that is not where the filter has it.
func (u *Usage) moved(f *api.RequestFilter, k kept, from, to int64) {
	asked, until := span(f)
	if k.end > 0 && asked < max(k.rows, k.rollups) && from != max(asked, k.first) {
		u.From = instant(from)
	}
	if until >= 0 && until < k.rows && to > until {
		u.To = instant(to)
	}
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
		Requests: u.count, PromptTokens: u.prompt, CompletionTokens: u.completion, Estimated: u.estimated, SlotMS: u.slot, GPUMS: u.gpu, QueueMS: u.queue,
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
	return placeholder(len(b.args))
}

// params are several of them, with commas.
func (b *builder) params(values ...int64) string {
	var list []string
	for _, v := range values {
		list = append(list, b.param(v))
	}
	return strings.Join(list, ", ")
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
		cond.WriteString(b.in(c.column, c.names))
	}
	return cond.String()
}

// in is the condition that column has one of the names, with an AND in front; of no names it is none.
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

// sums are the columns of used in the order in which they are read, of a cell, of a row and summed up.
const (
	cellSums = `count, timed, total_ms, first_bytes, ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, last_at, gpu_ms, queue_ms`
	rowSums  = `1 AS count, CASE WHEN total_ms > 0 THEN 1 ELSE 0 END AS timed, total_ms, CASE WHEN ttfb_ms IS NULL THEN 0 ELSE 1 END AS first_bytes,
		COALESCE(ttfb_ms, 0.0) AS ttfb_ms, prompt_tokens, completion_tokens, estimated, slot_ms, bytes_in, bytes_out, at AS last_at,
		COALESCE(gpu_ms, 0.0) AS gpu_ms, COALESCE(queue_ms, 0.0) AS queue_ms`
	summed = `SUM(count) AS count, SUM(timed) AS timed, SUM(total_ms) AS total_ms, SUM(first_bytes) AS first_bytes, SUM(ttfb_ms) AS ttfb_ms,
		SUM(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens, SUM(estimated) AS estimated, SUM(slot_ms) AS slot_ms,
		SUM(bytes_in) AS bytes_in, SUM(bytes_out) AS bytes_out, MAX(last_at) AS last_at, SUM(gpu_ms) AS gpu_ms, SUM(queue_ms) AS queue_ms`
	total = `COUNT(*), COALESCE(SUM(count), 0), COALESCE(SUM(timed), 0), COALESCE(SUM(total_ms), 0.0), COALESCE(SUM(first_bytes), 0), COALESCE(SUM(ttfb_ms), 0.0),
		COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), COALESCE(SUM(estimated), 0), COALESCE(SUM(slot_ms), 0.0),
		COALESCE(SUM(bytes_in), 0), COALESCE(SUM(bytes_out), 0), COALESCE(MAX(last_at), 0), COALESCE(SUM(gpu_ms), 0.0), COALESCE(SUM(queue_ms), 0.0)`
)

// plan cuts the query's span into what it is answered from.
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
		// Where no hours are left there is no answer by hour.
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

// labelled reports whether groups are told apart by time.
func (q *UsageQuery) labelled() bool { return slices.ContainsFunc(q.By, api.Dimension.IsTime) }

// mostRuns bounds the parameters of a statement: SQLite takes 32,766.
const mostRuns = 6000

// cutDates cuts [from, to) at each begin of a day, week or month of a zone, as near to it as can be told.
func (p *plan) cutDates(by api.Dimension, zone *time.Location, from, to int64) error {
	for at := by.Begin(time.UnixMilli(from).In(zone)); from < to; {
		next := by.Next(at)
		if !next.After(at) { // it would never end
			return fmt.Errorf("the %s after %v begins at %v", by, at, next)
		}
		end := min(p.before(millis(next)), to)
		p.cut(from, end, millis(at))
		from, at = max(from, end), next
		if len(p.runs)+len(p.rows) > mostRuns {
			return api.Errorf(api.CodeBadRequest, "these are too many days of a zone that is not UTC: move from and to closer, or leave the zone out")
		}
	}
	return nil
}

// needs are the names that a cell must keep apart to answer.
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

// build is the statement: the groups are summed up once, and both their total and the first of them are read.
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
	with, used := p.build(b, &q.RequestFilter, labelled, dimensions+cellSums, dimensions+rowSums)
	return `WITH RECURSIVE ` + with + `,
		grouped AS MATERIALIZED (SELECT ` + list(append(slices.Clone(names), summed)...) + ` FROM (` + used + `) AS used` + by + `)
		SELECT ` + list(append(append([]string{"1"}, none...), total)...) + ` FROM grouped
		UNION ALL
		SELECT * FROM (SELECT ` + list(append(append([]string{"0"}, names...), "1", cellSums)...) + ` FROM grouped` + sorted + ` LIMIT ` + b.param(q.Limit) + `) AS first` + sorted
}

// placeOf is the place of the i-th dimension in the answer, for ORDER BY.
func placeOf(i int) string { return strconv.Itoa(i + 2) }

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
