package store

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
)

// kept is the range of the stored data. rows, minutes and rollups are the times from which on these exist. Quarters and the hours of
// usage_period exist as long as rows; all other sums as long as rollups. Data exists from first to end, the end of the last day with data.
type kept struct{ rows, minutes, rollups, first, end int64 }

func readKept(ctx context.Context, tx *sql.Tx) (k kept, err error) {
	err = rows(ctx, tx, `SELECT what, since FROM kept`, func(r *sql.Rows) error {
		var what string
		var since int64
		err := r.Scan(&what, &since)
		switch what {
		case "rows":
			k.rows = since
		case "minutes":
			k.minutes = since
		case "rollups":
			k.rollups = since
		}
		return err
	})
	if err != nil {
		return k, err
	}
	var first, last sql.NullInt64
	err = tx.QueryRowContext(ctx, `SELECT (SELECT MIN(start) FROM usage_sum WHERE kind = $1 AND width = $2), (SELECT MAX(start) FROM usage_sum WHERE kind = $1 AND width = $2)`,
		byOutcome, dayMS).Scan(&first, &last)
	if last.Valid {
		k.first, k.end = down(first.Int64, blockMS), up(last.Int64+dayMS, blockMS)
	}
	return k, err
}

// source is where the sums of one period length are read.
type source struct {
	kind         kind
	width, since int64
}

// sources returns where a query about the dimensions in needs can be answered from, the longest periods first. With chosen keys, the
// cells are in usage_period, among few others. Queries about all keys have their own sums if they name at most one other dimension.
func (k kept) sources(needs kind, keysChosen bool) []source {
	from := func(k kind, since int64, widths ...int64) (all []source) {
		for _, w := range widths {
			all = append(all, source{k, w, since})
		}
		return all
	}
	switch {
	case needs == 0:
		needs = byOutcome
		fallthrough
	case needs&(needs-1) == 0:
		fine := byOthers
		if needs == byKey {
			fine = byKey
		}
		return append(from(needs, k.rollups, blockMS, dayMS, hourMS), source{fine, quarterMS, k.rows}, source{fine, minuteMS, k.minutes})
	case needs&byKey == 0:
		return append(from(byOthers, k.rollups, blockMS, dayMS, hourMS),
			source{byOthers, quarterMS, k.rows}, source{byOthers, minuteMS, k.minutes})
	}
	hours := source{byAll, hourMS, k.rows}
	others := needs &^ byKey
	if !keysChosen && others&(others-1) == 0 {
		return append(from(needs, k.rollups, blockMS, dayMS), hours)
	}
	return append(from(byAll, k.rollups, dayMS), hours)
}

// run is a sequence of periods whose sums are read: [from, to) in steps of width. They belong to the time label; ownTime means the start
// of each period.
type run struct {
	source
	from, to, label int64
}

// stretch is a piece of time whose rows are read.
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
// the boundary of a minute, an hour or a day.
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

// cut composes [from, to) from the longest periods that fit, and from rows where none does.
func (p *plan) cut(from, to, label int64) { p.cutFrom(p.sources, from, to, label) }

func (p *plan) cutFrom(sources []source, from, to, label int64) {
	if from >= to {
		return
	}
	if len(sources) == 0 {
		p.rows = append(p.rows, stretch{from, to, label})
		return
	}
	s := sources[0]
	first, last := up(max(from, s.since), s.width), down(to, s.width)
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
	if first > last {
		p.cut(from, to, last)
		return
	}
	p.cut(from, first, down(from, step))
	for _, s := range p.sources {
		if s.width == step && first < last {
			p.runs = append(p.runs, run{s, first, last, ownTime})
		}
	}
	p.cut(last, to, last)
}

// build returns a SELECT of columns for the cells and rows of the plan that match the filter. It must follow its own WITH.
func (p *plan) build(b *builder, f *api.RequestFilter, labelled bool, columns, rowColumns string) (with, query string) {
	var tables, parts []string
	label := ""
	if labelled {
		label = "CASE WHEN s.label < 0 THEN s.start ELSE s.label END AS at, "
	}
	byKind := map[kind][]string{}
	for _, r := range p.runs {
		byKind[r.kind] = append(byKind[r.kind], "("+b.params(r.width, r.from, r.to, r.label)+")")
	}
	for i, k := range slices.Sorted(maps.Keys(byKind)) {
		// Look up each period by its start, and not by a range, so that the index also applies to the names that follow in the key.
		name, table, on := "run"+strconv.Itoa(i), "usage_sum", "u.kind = "+b.param(int64(k))+" AND "
		if k == byAll {
			table, on = "usage_period", ""
		}
		tables = append(tables, name+`(width, start, stop, label) AS (SELECT * FROM (VALUES `+strings.Join(byKind[k], ", ")+`) AS v
			UNION ALL SELECT width, start + width, stop, label FROM `+name+` WHERE start + width < stop)`)
		parts = append(parts, `SELECT `+label+columns+` FROM `+name+` AS s CROSS JOIN `+table+` AS u WHERE `+on+`u.width = s.width AND u.start = s.start`+empty(k)+b.filter(f))
	}
	if len(p.rows) > 0 {
		if labelled {
			label = "s.label AS at, "
		}
		stretches := make([]string, len(p.rows))
		for i, r := range p.rows {
			stretches[i] = "(" + b.params(r.from, r.to, r.label) + ")"
		}
		tables = append(tables, `stretch(low, high, label) AS (VALUES `+strings.Join(stretches, ", ")+`)`)
		parts = append(parts, `SELECT `+label+rowColumns+` FROM stretch AS s CROSS JOIN requests AS u WHERE u.at >= s.low AND u.at < s.high`+b.filter(f))
	}
	return strings.Join(tables, ",\n\t\t"), strings.Join(parts, "\n\t\tUNION ALL ")
}

// empty is the condition that the names outside the kind are ”. Without it, the index would not apply to the columns that follow them in
// the key.
func empty(k kind) string {
	cond := ""
	for _, n := range []struct {
		kind   kind
		column string
	}{{byModel, "model"}, {byEndpoint, "endpoint"}, {byBackend, "backend"}, {byOutcome, "outcome"}, {byKey, "key"}} {
		if k&n.kind == 0 {
			cond += " AND u." + n.column + " = ''"
		}
	}
	return cond
}

func placeholder(n int) string { return fmt.Sprint("$", n) }
