package store

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// RequestQuery selects requests, the newest first: at most Limit requests after Before. A zero Before means the newest.
type RequestQuery struct {
	api.RequestFilter
	Before Place
	Limit  int
}

// Place is a request's position in the list. It does not change when requests are added.
type Place struct {
	At int64 // milliseconds
	ID string
}

// Requests lists requests. next is nil if there are no more, otherwise the Before of the next page. A request is listed after it has
// ended, at the time when it was admitted, so it may appear in a page that was already read.
func (s *Store) Requests(ctx context.Context, q RequestQuery) (list []api.Record, next *Place, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		k, err := readKept(ctx, tx)
		if err != nil {
			return err
		}
		from, to := span(&q.RequestFilter)
		from = max(from, k.rows)
		if len(q.Keys) == 0 && len(q.Models)+len(q.Endpoints)+len(q.Backends)+len(q.Outcomes) > 0 {
			list, err = q.byShape(ctx, tx, from, to)
			return err
		}
		from, to, some, err := q.narrow(ctx, tx, k, from, to)
		if err != nil || !some {
			return err
		}
		b := &builder{}
		where := b.within("at", from, to) + b.filter(&q.RequestFilter) + q.behind(b)
		list, err = records(ctx, tx, where+` ORDER BY at DESC, id DESC LIMIT `+b.param(q.Limit+1), b.args...)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		last := list[q.Limit-1]
		next = &Place{millis(last.At), last.ID}
	}
	return list, next, nil
}

func records(ctx context.Context, tx *sql.Tx, where string, args ...any) (list []api.Record, err error) {
	err = rows(ctx, tx, `SELECT `+rowNames+` FROM requests WHERE `+where, func(r *sql.Rows) error {
		record, err := scanRecord(r)
		list = append(list, record)
		return err
	}, args...)
	return list, err
}

// behind is the condition for rows after Before. Its first part uses only the time, so that an index on it applies.
func (q *RequestQuery) behind(b *builder) string {
	if q.Before.ID == "" {
		return ""
	}
	at := b.param(q.Before.At)
	return ` AND at <= ` + at + ` AND (at < ` + at + ` OR id < ` + b.param(q.Before.ID) + `)`
}

// byShape finds the page among the requests of each selected shape, starting with the newest. Once the page is full, only requests newer
// than its end matter, so all shapes together read little more than one page.
func (q *RequestQuery) byShape(ctx context.Context, tx *sql.Tx, from, to int64) ([]api.Record, error) {
	b := &builder{}
	var chosen []int64
	err := rows(ctx, tx, `SELECT id FROM shapes WHERE id > 0`+b.filter(&q.RequestFilter), func(r *sql.Rows) error {
		var id int64
		err := r.Scan(&id)
		chosen = append(chosen, id)
		return err
	}, b.args...)
	if err != nil {
		return nil, err
	}
	b = &builder{}
	query := `SELECT at, id FROM requests WHERE shape = ` + b.param(0) + ` AND at >= ` + b.param(from) //nolint:gosec // param gives ? or $1
	if to >= 0 {
		query += ` AND at < ` + b.param(to)
	}
	query += q.behind(b) + ` ORDER BY at DESC, id DESC LIMIT ` + b.param(q.Limit+1)
	find, err := tx.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer find.Close()
	newestFirst := func(a, b Place) int { return -cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.ID, b.ID)) }
	var found []Place
	for _, number := range chosen {
		b.args[0], b.args[1] = number, from
		some, err := places(ctx, find, b.args)
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			continue
		}
		found = append(found, some...)
		slices.SortFunc(found, newestFirst)
		if len(found) > q.Limit {
			found = found[:q.Limit+1]
			from = found[q.Limit].At
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	b = &builder{}
	ids := make([]string, len(found))
	for i, p := range found {
		ids[i] = b.param(p.ID)
	}
	return records(ctx, tx, `id IN (`+strings.Join(ids, ", ")+`) ORDER BY at DESC, id DESC`, b.args...)
}

// Request returns the request with this ID. ok is false if there is none, or if its row was deleted.
func (s *Store) Request(ctx context.Context, id string) (r api.Record, ok bool, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		list, err := records(ctx, tx, `id = $1`, id)
		if len(list) > 0 {
			r, ok = list[0], true
		}
		return err
	})
	return r, ok, err
}

func places(ctx context.Context, find *sql.Stmt, args []any) (some []Place, err error) {
	r, err := find.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for r.Next() {
		var p Place
		if err := r.Scan(&p.At, &p.ID); err != nil {
			return nil, err
		}
		some = append(some, p)
	}
	return some, r.Err()
}

// narrow returns the time span of the page. Indexes find rows only by time and by key. For something that a key rarely or never did,
// narrow first reads from the rollup which days have it, so that the rows in between are not read.
func (q *RequestQuery) narrow(ctx context.Context, tx *sql.Tx, k kept, from, to int64) (_, _ int64, some bool, err error) {
	if q.Before.ID != "" && (to < 0 || q.Before.At < to) {
		to = q.Before.At + 1
	}
	if len(q.Models)+len(q.Endpoints)+len(q.Backends)+len(q.Outcomes) == 0 {
		return from, to, true, nil
	}
	p := plan{kept: k}
	first, end := down(max(from, k.first), dayMS), k.end
	if to >= 0 {
		end = min(end, up(to, dayMS))
	}
	if first >= end {
		return 0, 0, false, nil
	}
	p.runs = []run{{source{byAll, dayMS, 0}, first, end, ownTime}}
	b := &builder{}
	with, days := p.build(b, &q.RequestFilter, true, "count", "")
	var newest, oldest, found int64
	err = rows(ctx, tx, `WITH RECURSIVE `+with+` SELECT at, SUM(count) FROM (`+days+`) AS days GROUP BY at ORDER BY at DESC`, func(r *sql.Rows) error {
		var start, n int64
		if err := r.Scan(&start, &n); err != nil || found > int64(q.Limit) {
			return err
		}
		if newest == 0 {
			newest = start + dayMS
		}
		oldest = start
		// It is unknown how many requests of a partly covered day are in the span.
		if to < 0 || start+dayMS <= to {
			found += n
		}
		return nil
	}, b.args...)
	if to < 0 || newest < to {
		to = newest
	}
	return max(from, oldest), to, newest > 0, err
}

// scanRecord reads the columns of rowNames.
func scanRecord(r *sql.Rows) (out api.Record, err error) {
	values, into := make([]any, len(rowColumns)), make([]any, len(rowColumns))
	for i := range values {
		into[i] = &values[i]
	}
	if err := r.Scan(into...); err != nil {
		return out, err
	}
	for i, c := range rowColumns {
		c.Set(&out, values[i])
	}
	return out, nil
}

// duration is the inverse of milliseconds.
func duration(ms float64) time.Duration { return time.Duration(ms*float64(time.Millisecond) + 0.5) }
