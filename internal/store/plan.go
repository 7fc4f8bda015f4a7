package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"ollama-api-service/internal/api"
)

// The lengths of the periods that have sums, in milliseconds.
const (
	minuteMS = 60_000
	hourMS   = 60 * minuteMS
	dayMS    = 24 * hourMS
	// foreverMS is the width of all-time sums, which are never deleted.
	foreverMS = 0
)

// kept is the range of the stored data, in milliseconds. rows and rollups are the times from which on requests and sums exist. closed is
// the end of the hours with sums. Data in sums and packs, and after coverTail all data, exists from first to end, which are whole days; end
// is 0 without data. folded and forever are the greatest rowids in packs and in the totals of all time.
type kept struct {
	rows, rollups, closed, first, end int64
	folded, forever                   int64
	// old is the time from which on the rows up to oldRows are in the tables of earlier versions; negative means never.
	old, oldRows int64
	totals       bool // the totals of all time have those of earlier versions
}

func readKept(ctx context.Context, tx *sql.Tx) (k kept, err error) {
	k.old = -1
	marks := map[string]*int64{
		"rows": &k.rows, "rollups": &k.rollups, "closed": &k.closed, "folded": &k.folded, "forever": &k.forever,
		"old": &k.old, "old_rows": &k.oldRows,
	}
	err = rows(ctx, tx, `SELECT what, since FROM kept`, func(r *sql.Rows) error {
		var what string
		var since int64
		err := r.Scan(&what, &since)
		if at := marks[what]; at != nil {
			*at = since
		}
		k.totals = k.totals || what == "totals"
		return err
	})
	if err != nil {
		return k, err
	}
	const days = ` WHERE kind = $1 AND width = $2`
	for _, table := range k.sumTables() {
		var first, last sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT (SELECT MIN(start) FROM `+table.name+days+`), (SELECT MAX(start) FROM `+table.name+days+`)`, table.kind, dayMS).Scan(&first, &last)
		if err != nil {
			return k, err
		}
		k.cover(first, last)
	}
	var first, last sql.NullInt64
	if err = tx.QueryRowContext(ctx, `SELECT (SELECT MIN(hour) FROM packs), (SELECT MAX(hour) FROM packs)`).Scan(&first, &last); err != nil {
		return k, err
	}
	k.cover(first, last)
	return k, nil
}

// coverTail extends the range of the data to the rows that are not in packs.
func (k *kept) coverTail(tail *batch) {
	for _, at := range tail.at {
		if at < k.first || at >= k.end {
			k.cover(sql.NullInt64{Int64: at, Valid: true}, sql.NullInt64{Int64: at, Valid: true})
		}
	}
}

// cover extends the range of the data to days with data.
func (k *kept) cover(first, last sql.NullInt64) {
	if !first.Valid {
		return
	}
	if start := down(first.Int64, dayMS); k.end == 0 || start < k.first {
		k.first = start
	}
	k.end = max(k.end, down(last.Int64, dayMS)+dayMS)
}

// source is where the sums of one period length are read: those that start from since on and end until until.
type source struct {
	kind                kind
	width, since, until int64
}

// sources returns where a query about some names can be answered from, the longest periods first. What is left is read from packs.
func (k kept) sources(needs kind) []source {
	day := func(of kind) source { return source{of, dayMS, k.rollups, down(k.closed, dayMS)} }
	hour := func(of kind) source { return source{of, hourMS, k.rollups, k.closed} }
	switch others := needs &^ byKey; {
	case needs&byKey == 0:
		return []source{day(byOthers), hour(byOthers)}
	case others == 0:
		return []source{day(byKey), hour(byKey)}
	case others&(others-1) == 0:
		return []source{day(needs)}
	}
	return []source{day(byAll)}
}

// run is a sequence of periods whose sums are read: [from, to) in steps of width. They belong to the time label; ownTime means the start
// of each period.
type run struct {
	source
	from, to, label int64
}

// stretch is a piece of time whose requests are read.
type stretch struct{ from, to, label int64 }

const ownTime = -1

// plan is how a span is composed.
type plan struct {
	kept    kept
	sources []source
	runs    []run
	rows    []stretch
}

// before and after return the ends of the smallest distinguishable piece of time around t: t itself as long as there are rows, otherwise
// the boundary of an hour or a day.
func (p *plan) before(t int64) int64 { return p.border(t, down) }
func (p *plan) after(t int64) int64  { return p.border(t, up) }

func (p *plan) border(t int64, round func(int64, int64) int64) int64 {
	if t >= p.kept.rows {
		return t
	}
	for _, s := range slices.Backward(p.sources) {
		if down(t, s.width) >= s.since {
			return round(t, s.width)
		}
	}
	return p.kept.rollups
}

// cut composes [from, to) from the longest periods that fit, and from rows where none does. What is in old tables is separate from what
// is not.
func (p *plan) cut(from, to, label int64) {
	if old := p.kept.old; old > from && old < to {
		p.cutFrom(p.sources, from, old, label)
		from = old
	}
	p.cutFrom(p.sources, from, to, label)
}

func (p *plan) cutFrom(sources []source, from, to, label int64) {
	if from >= to {
		return
	}
	if len(sources) == 0 {
		p.rows = append(p.rows, stretch{from, to, label})
		return
	}
	s := sources[0]
	first, last := up(max(from, s.since), s.width), down(min(to, s.until), s.width)
	if first >= last {
		p.cutFrom(sources[1:], from, to, label)
		return
	}
	p.cutFrom(sources[1:], from, first, label)
	p.runs = append(p.runs, run{s, first, last, label})
	p.cutFrom(sources[1:], last, to, label)
}

// cutEach cuts [from, to) at each step of UTC, with the start of each step as label.
func (p *plan) cutEach(step, from, to int64) {
	first, last := up(from, step), down(to, step)
	for _, s := range p.sources {
		if s.width == step {
			last = min(last, down(s.until, step))
		}
	}
	if p.kept.old >= 0 {
		last = first // the old tables cut the time too
	}
	whole := slices.IndexFunc(p.sources, func(s source) bool { return s.width == step })
	if whole >= 0 && first < last {
		p.cut(from, first, down(from, step))
		p.runs = append(p.runs, run{p.sources[whole], first, last, ownTime})
		from = last
	}
	for from < to {
		next := min(down(from, step)+step, to)
		p.cut(from, next, down(from, step))
		from = next
	}
}

func down(ms, step int64) int64 {
	if step == foreverMS {
		return 0
	}
	return ms - ms%step
}

func up(ms, step int64) int64 { return down(ms+step-1, step) }

func placeholder(n int) string { return fmt.Sprint("$", n) }

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
func upMillis(t time.Time) int64 { return millis(t.Add(time.Millisecond - time.Nanosecond)) }
