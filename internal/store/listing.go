package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"math"
	"slices"

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
		k, d, err := s.begin(ctx, tx)
		if err != nil {
			return err
		}
		from, to := span(&q.RequestFilter)
		from = max(from, k.rows)
		b := &builder{}
		where := b.within("r.at", from, to) + b.filter(&q.RequestFilter) + q.behind(b)
		if c := d.choose(&q.RequestFilter); c.keys != nil || c.shapes != nil {
			times, err := s.times(ctx, tx, &q, &k, d, &c, from, to)
			if err != nil || len(times) == 0 {
				return err
			}
			where += ` AND r.at IN (` + params(b, times) + `)`
		}
		list, err = records(ctx, tx, where+` ORDER BY r.at DESC, r.id DESC LIMIT `+b.param(q.Limit+1), b.args...)
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
	err = rows(ctx, tx, `SELECT `+rowNames+` FROM requests r JOIN shapes s ON s.id = r.shape WHERE `+where, func(r *sql.Rows) error {
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
	return ` AND r.at <= ` + at + ` AND (r.at < ` + at + ` OR r.id < ` + b.param(q.Before.ID) + `)`
}

// times returns when the requests of the page were admitted, and perhaps some more.
func (s *Store) times(
	ctx context.Context, tx *sql.Tx, q *RequestQuery, k *kept, d *dictionary, c *chosen, from, to int64,
) (times []int64, err error) {
	if c.none {
		return nil, nil
	}
	if q.Before.ID != "" && (to < 0 || q.Before.At < to) {
		to = q.Before.At + 1
	}
	if to < 0 {
		to = math.MaxInt64
	}
	tail, err := s.tail.in(ctx, tx, d, k.folded)
	if err != nil {
		return nil, err
	}
	found := newest{limit: q.Limit + 1, before: q.Before.At}
	for i, at := range tail.at {
		if at >= from && at < to && c.has(tail.key[i], tail.shape[i]) {
			found.add(at)
		}
	}
	found.trim()
	var hour int64
	var find sql.RawBytes
	err = rows(ctx, tx, `SELECT hour, find FROM packs WHERE hour >= $1 AND hour < $2 ORDER BY hour DESC`, func(r *sql.Rows) error {
		if err := r.Scan(&hour, &find); err != nil {
			return err
		}
		if hour+hourMS <= found.least {
			return errFull
		}
		columns, n, err := unpack(find, 3)
		for i := range n {
			if at := columns[0].at(i); at >= from && at < to && at >= found.least && c.has(columns[1].at(i), columns[2].at(i)) {
				found.add(at)
			}
		}
		found.trim()
		return err
	}, down(from, hourMS), to)
	if errors.Is(err, errFull) {
		err = nil
	}
	if err == nil && k.old >= 0 {
		err = oldTimes(ctx, tx, q, k, max(from, k.old, found.least), to, &found)
	}
	return found.times, err
}

var errFull = errors.New("the page is full")

// newest collects the latest times: limit of those before a time, or of all if that is 0.
type newest struct {
	limit  int
	before int64
	times  []int64
	least  int64 // earlier times are not needed
}

func (n *newest) add(at int64) { n.times = append(n.times, at) }

func (n *newest) trim() {
	slices.SortFunc(n.times, func(a, b int64) int { return cmp.Compare(b, a) })
	from := 0
	for from < len(n.times) && n.before > 0 && n.times[from] >= n.before {
		from++
	}
	if end := from + n.limit; end <= len(n.times) {
		n.least = n.times[end-1]
		for end < len(n.times) && n.times[end] == n.least {
			end++
		}
		n.times = n.times[:end]
	}
	n.times = slices.Compact(n.times)
}

// Request returns the request with this ID. ok is false if there is none, or if its row was deleted.
func (s *Store) Request(ctx context.Context, id string) (r api.Record, ok bool, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		list, err := records(ctx, tx, `r.id = $1`, id)
		if len(list) > 0 {
			r, ok = list[0], true
		}
		return err
	})
	return r, ok, err
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
