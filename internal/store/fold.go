package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Rows are numbered in the order in which they are added. The newest ones, up to some thousands, are the tail: queries read them one by
// one. When the tail is long enough, its rows are folded into packs. Sums of an hour are written when the hour is closed, which means that
// the packs have requests of later hours. A request that is folded later than that is added to its sums at once.

// foldRows is the length of the tail at which it is folded.
const foldRows = 8192

// tail caches the rows that are not in packs, so that each is read once.
type tail struct {
	mu         sync.Mutex
	from, last int64 // the rows after from, up to last
	rows       *batch
}

// amountColumns are the summed columns of a row.
var amountColumns = "r." + strings.Join(namesOf(sumColumns), ", r.")

// in returns the rows after folded that a transaction can see.
func (t *tail) in(ctx context.Context, tx *sql.Tx, d *dictionary, folded int64) (*batch, error) {
	var newest int64
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(rowid), 0) FROM requests`).Scan(&newest); err != nil {
		return nil, err
	}
	newest = max(newest, folded)
	t.mu.Lock()
	defer t.mu.Unlock()
	if folded < t.from || newest < t.last {
		// The transaction began before others that have used the cache.
		b := &batch{}
		return b, readBatch(ctx, tx, d, b, `r.rowid > $1`, folded)
	}
	if t.rows == nil || folded >= t.last {
		t.from, t.last, t.rows = folded, folded, &batch{}
	}
	if folded > t.from {
		var left []int
		for i, n := range t.rows.n {
			if n > folded {
				left = append(left, i)
			}
		}
		t.from, t.rows = folded, t.rows.slice(left)
	}
	if newest > t.last {
		grown := *t.rows // queries that run keep the shorter one
		if err := readBatch(ctx, tx, d, &grown, `r.rowid > $1`, t.last); err != nil {
			return nil, err
		}
		t.last, t.rows = newest, &grown
	}
	return t.rows, nil
}

// added appends rows that a transaction has committed, if they continue what is known.
func (t *tail) added(before, after int64, rows *batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows != nil && t.last == before {
		t.last, t.rows = after, rows
	}
}

// readBatch reads rows of the table, in the order of their numbers.
func readBatch(ctx context.Context, tx *sql.Tx, d *dictionary, b *batch, where string, args ...any) error {
	var n, at, shape int64
	var key string
	values := make([]sql.NullFloat64, sumCount)
	into := []any{&n, &at, &key, &shape}
	for i := range values {
		into = append(into, &values[i])
	}
	return rows(ctx, tx, `SELECT r.rowid, r.at, r.key, r.shape, `+amountColumns+` FROM requests r WHERE `+where+` ORDER BY r.rowid`, func(r *sql.Rows) error {
		if err := r.Scan(into...); err != nil {
			return err
		}
		var amounts [sumCount]int64
		for i, c := range sumColumns {
			amounts[i] = c.AmountOf(values[i].Float64)
		}
		b.add(n, at, d.keyIDs[key], shape, &amounts)
		return nil
	}, args...)
}

// fold writes rows into packs, and adds those of closed hours to the sums of these.
func (s *Store) fold(ctx context.Context, tx *sql.Tx, k *kept, d *dictionary, b *batch) error {
	if b.len() == 0 {
		return nil
	}
	packs := b.byHour()
	for hour, part := range packs {
		if err := addPack(ctx, tx, hour, part); err != nil {
			return err
		}
	}
	for hour, l := range k.sumUp(d, packs) {
		if err := l.save(ctx, tx, hour); err != nil {
			return err
		}
	}
	k.folded = b.n[b.len()-1]
	return setMark(ctx, tx, "folded", k.folded)
}

// byHour returns the requests of each hour, in the order of time.
func (b *batch) byHour() map[int64]*batch {
	lists, out := map[int64][]int{}, map[int64]*batch{}
	for i, at := range b.at {
		lists[down(at, hourMS)] = append(lists[down(at, hourMS)], i)
	}
	for hour, list := range lists {
		slices.SortStableFunc(list, func(i, j int) int { return cmp.Compare(b.at[i], b.at[j]) })
		out[hour] = b.slice(list)
	}
	return out
}

// sumUp returns the sums of requests whose hours or days are closed, by hour.
func (k *kept) sumUp(d *dictionary, packs map[int64]*batch) map[int64]*levels {
	out := map[int64]*levels{}
	for hour, b := range packs {
		if hour >= k.closed {
			continue
		}
		day := down(hour, dayMS)
		dayClosed := day+dayMS <= k.closed
		for _, start := range []int64{hour, day} {
			if out[start] == nil {
				out[start] = newLevels(d)
			}
		}
		for i := range b.len() {
			u := b.used(i)
			out[hour].addHour(b.key[i], b.shape[i], &u)
			if dayClosed {
				out[day].addDay(b.key[i], b.shape[i], &u)
			}
		}
	}
	return out
}

func addPack(ctx context.Context, tx *sql.Tx, hour int64, b *batch) error {
	find, rest := b.encode()
	_, err := tx.ExecContext(ctx, `INSERT INTO packs (hour, n, count, find, rest) VALUES ($1, $2, $3, $4, $5)`, hour, slices.Max(b.n), b.len(), find, rest)
	return err
}

func setMark(ctx context.Context, tx *sql.Tx, what string, value int64) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO kept (what, since) VALUES ($1, $2) ON CONFLICT (what) DO UPDATE SET since = excluded.since`, what, value)
	return err
}

// levels are the sums of an hour and of its day.
type levels struct {
	hour, day map[kind]cells
	of        map[kind][]int64 // which shape stands for others
}

var (
	hourKinds = []kind{byKey, byOthers}
	dayKinds  = append([]kind{byKey, byOthers, byAll}, pairs...)
)

func newLevels(d *dictionary) *levels {
	l := &levels{map[kind]cells{}, map[kind]cells{}, map[kind][]int64{}}
	for _, k := range dayKinds {
		l.hour[k], l.day[k], l.of[k] = cells{}, cells{}, d.project(k)
	}
	return l
}

func (l *levels) addHour(key, shape int64, u *used) { l.add(l.hour, hourKinds, key, shape, u) }
func (l *levels) addDay(key, shape int64, u *used)  { l.add(l.day, dayKinds, key, shape, u) }

func (l *levels) add(to map[kind]cells, kinds []kind, key, shape int64, u *used) {
	for _, k := range kinds {
		at := cell{key, l.of[k][shape]}
		if k&byKey == 0 {
			at.key = 0
		}
		to[k].add(at, u)
	}
}

// save adds the sums to those of the hour and the day.
func (l *levels) save(ctx context.Context, tx *sql.Tx, hour int64) error {
	for _, k := range hourKinds {
		if err := addCells(ctx, tx, k, hourMS, hour, l.hour[k]); err != nil {
			return err
		}
	}
	for _, k := range dayKinds {
		if err := addCells(ctx, tx, k, dayMS, down(hour, dayMS), l.day[k]); err != nil {
			return err
		}
	}
	return nil
}

// addCells adds sums to those of a period.
func addCells(ctx context.Context, tx *sql.Tx, k kind, width, start int64, more cells) error {
	parts := map[int64]cells{}
	for at, u := range more {
		p := at.key / partKeys
		if parts[p] == nil {
			parts[p] = cells{}
		}
		parts[p][at] = u
	}
	for _, p := range slices.Sorted(maps.Keys(parts)) {
		c := parts[p]
		err := rows(ctx, tx, `SELECT cells FROM sums WHERE kind = $1 AND width = $2 AND start = $3 AND part = $4`, func(r *sql.Rows) error {
			var b sql.RawBytes
			if err := r.Scan(&b); err != nil {
				return err
			}
			return c.decode(b)
		}, int64(k), width, start, p)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO sums (kind, width, start, part, cells) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (kind, width, start, part) DO UPDATE SET cells = excluded.cells`, int64(k), width, start, p, c.encode())
		if err != nil {
			return err
		}
	}
	return nil
}

// foldAll moves all rows of the tail into packs.
func (s *Store) foldAll(ctx context.Context) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, d, err := s.begin(ctx, tx)
		if err != nil {
			return err
		}
		b, err := s.tail.in(ctx, tx, d, k.folded)
		if err != nil {
			return err
		}
		return s.fold(ctx, tx, &k, d, b)
	})
}

// begin reads what every transaction about usage needs.
func (s *Store) begin(ctx context.Context, tx *sql.Tx) (k kept, d *dictionary, err error) {
	if k, err = readKept(ctx, tx); err == nil {
		d, err = s.dictionaries.in(ctx, tx)
	}
	return k, d, err
}

// closeHours writes the sums of all hours before until whose requests are in packs, one hour or day in each transaction, and brings the
// totals of all time up to date.
func (s *Store) closeHours(ctx context.Context, until int64) error {
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var k kept
		var l *levels
		var seen seenPacks
		var at, next int64
		err := s.read(ctx, func(tx *sql.Tx) (err error) {
			var d *dictionary
			if k, d, err = s.begin(ctx, tx); err != nil {
				return err
			}
			var first, newest sql.NullInt64
			err = tx.QueryRowContext(ctx, `SELECT (SELECT MIN(hour) FROM packs WHERE hour >= $1), (SELECT MAX(hour) FROM packs)`, k.closed).Scan(&first, &newest)
			if err != nil || !newest.Valid {
				more = false
				return err
			}
			until := min(until, newest.Int64) // later hours may get more
			if more = k.closed < until; !more {
				return nil
			}
			l = newLevels(d)
			hour := until
			if first.Valid {
				hour = min(first.Int64, until)
			}
			day := down(k.closed, dayMS)
			if end := day + dayMS; hour >= end {
				next, at = max(end, down(hour, dayMS)), day
				seen, err = packsIn(ctx, tx, day, end, func(key, shape int64, u *used) { l.addDay(key, shape, u) })
				return err
			}
			if hour == until {
				next = until
				return nil
			}
			from, end := hour, day+dayMS
			if next = hour + hourMS; next == end {
				from = day // the day is closed too
			}
			at = hour
			seen, err = packsIn(ctx, tx, from, next, func(key, shape int64, u *used) {
				if u[ofLast] >= hour {
					l.addHour(key, shape, u)
				}
				if next == end {
					l.addDay(key, shape, u)
				}
			})
			return err
		})
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := s.saveClosed(ctx, k, l, seen, at, next); err != nil {
			return err
		}
	}
	return s.addForever(ctx)
}

// seenPacks tells whether packs were added or deleted after they were read.
type seenPacks struct{ from, to, count, n int64 }

func (p *seenPacks) read(ctx context.Context, tx *sql.Tx) error {
	return tx.QueryRowContext(ctx, `SELECT COUNT(*), COALESCE(MAX(n), 0) FROM packs WHERE hour >= $1 AND hour < $2`, p.from, p.to).Scan(&p.count, &p.n)
}

func packsIn(ctx context.Context, tx *sql.Tx, from, to int64, take func(key, shape int64, u *used)) (seen seenPacks, err error) {
	seen = seenPacks{from: from, to: to}
	if err = seen.read(ctx, tx); err != nil {
		return seen, err
	}
	return seen, readPacks(ctx, tx, `hour >= $1 AND hour < $2`, func(_ int64, p *packed) {
		for i := range p.n {
			u := p.used(i)
			take(p.find[1].at(i), p.find[2].at(i), &u)
		}
	}, from, to)
}

func readPacks(ctx context.Context, tx *sql.Tx, where string, take func(hour int64, p *packed), args ...any) error {
	var hour int64
	var find, rest sql.RawBytes
	return rows(ctx, tx, `SELECT hour, find, rest FROM packs WHERE `+where, func(r *sql.Rows) error {
		if err := r.Scan(&hour, &find, &rest); err != nil {
			return err
		}
		p, err := openPack(find, rest)
		if err == nil {
			take(hour, &p)
		}
		return err
	}, args...)
}

// saveClosed writes the sums, unless other packs came since they were computed.
func (s *Store) saveClosed(ctx context.Context, before kept, l *levels, seen seenPacks, at, next int64) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, err := readKept(ctx, tx)
		if err != nil || k.closed != before.closed {
			return err
		}
		now := seen
		if err := now.read(ctx, tx); err != nil || now != seen {
			return err
		}
		if err := l.save(ctx, tx, at); err != nil {
			return err
		}
		return setMark(ctx, tx, "closed", next)
	})
}

// foreverKinds are the totals of all time: of each key, by model, endpoint and outcome, and its response times.
var foreverKinds = func() (all []kind) {
	for _, name := range []string{"model", "endpoint", "outcome"} {
		for i, c := range shapeColumns {
			if c.Name == name {
				all = append(all, byKey|2<<i)
			}
		}
	}
	return all
}()

// forever are the totals of all time.
type forever map[kind]cells

func newForever() forever {
	f := forever{byKey | byBucket: {}}
	for _, k := range foreverKinds {
		f[k] = cells{}
	}
	return f
}

func (f forever) add(of map[kind][]int64, key, shape int64, u *used) {
	for _, k := range foreverKinds {
		f[k].add(cell{key, of[k][shape]}, u)
	}
	if u[ofTimed] > 0 {
		f[byKey|byBucket].add(cell{key, bucketOf(u)}, &used{ofCount: 1})
	}
}

// addForever adds new packs to the totals of all time.
func (s *Store) addForever(ctx context.Context) error {
	var k kept
	total, reached := newForever(), int64(0)
	err := s.read(ctx, func(tx *sql.Tx) error {
		var d *dictionary
		var err error
		if k, d, err = s.begin(ctx, tx); err != nil {
			return err
		}
		of := map[kind][]int64{}
		for _, k := range foreverKinds {
			of[k] = d.project(k)
		}
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(n), 0) FROM packs`).Scan(&reached); err != nil {
			return err
		}
		return readPacks(ctx, tx, `n > $1 AND n <= $2`, func(_ int64, p *packed) {
			for i := range p.n {
				u := p.used(i)
				total.add(of, p.find[1].at(i), p.find[2].at(i), &u)
			}
		}, k.forever, reached)
	})
	if err != nil || reached <= k.forever {
		return err
	}
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		now, err := readKept(ctx, tx)
		if err != nil || now.forever != k.forever {
			return err
		}
		for kind, c := range total {
			if err := addCells(ctx, tx, kind, foreverMS, 0, c); err != nil {
				return err
			}
		}
		return setMark(ctx, tx, "forever", reached)
	})
}
