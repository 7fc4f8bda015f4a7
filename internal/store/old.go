package store

import (
	"context"
	"database/sql"
	"log/slog"
	"math"
	"time"
)

// Earlier versions kept sums in usage_sum and usage_period, and found requests by indexes. After an upgrade, what they wrote is read there
// until convert has moved it into packs and sums, a day at a time.

// sumTable is a table with sums by day.
type sumTable struct {
	name string
	kind int64
}

// sumTables returns the tables that have sums now.
func (k *kept) sumTables() []sumTable {
	tables := []sumTable{{"sums", int64(byOthers)}}
	if k.old >= 0 {
		tables = append(tables, sumTable{"usage_sum", oldOthers})
	}
	return tables
}

// The old kinds have one bit for each of these names, and the old tables have these sums.
const (
	oldOthers  = 30
	oldAll     = 31
	oldNames   = "key, model, endpoint, backend, outcome"
	oldAmounts = "count, last_at, timed, first_bytes, prompt_tokens, completion_tokens, estimated, ttfb_ms, total_ms, slot_ms, bytes_in, bytes_out, gpu_ms, queue_ms"
)

// readOldSums reads the sums of a run that are in the old tables.
func readOldSums(ctx context.Context, tx *sql.Tx, d *dictionary, r run, c *chosen, to take) error {
	return oldCells(ctx, tx, d, r.kind, ` AND width = $1 AND start >= $2 AND start < $3`, func(start, key, shape int64, u *used) {
		label := r.label
		if label == ownTime {
			label = start
		}
		if c.has(key, shape) {
			to(label, key, shape, u)
		}
	}, r.width, r.from, r.to)
}

func oldCells(ctx context.Context, tx *sql.Tx, d *dictionary, k kind, where string, to take, args ...any) error {
	table := `usage_sum WHERE kind = ` + placeholder(len(args)+1)
	if args = append(args, int64(k&oldAll)); k&oldAll == oldAll {
		table = `usage_period WHERE ` + placeholder(len(args)) + ` = 31`
	}
	var start int64
	var names [5]string
	var counts [4]int64
	var amounts [sumCount]float64
	into := []any{&start, &names[0], &names[1], &names[2], &names[3], &names[4], &counts[0], &counts[1], &counts[2], &counts[3]}
	for i := range amounts {
		into = append(into, &amounts[i])
	}
	first := d.first(k)
	return rows(ctx, tx, `SELECT start, `+oldNames+`, `+oldAmounts+` FROM `+table+where, func(row *sql.Rows) error {
		if err := row.Scan(into...); err != nil {
			return err
		}
		var u used
		u[ofCount], u[ofLast], u[ofTimed], u[ofFirstBytes] = counts[0], counts[1], counts[2], counts[3]
		for i, amount := range amounts {
			u[sums+i] = sumColumns[i].AmountOf(amount)
		}
		var at shape
		copy(at[:], names[1:])
		to(start, d.keyIDs[names[0]], first[at.of(k)], &u)
		return nil
	}, args...)
}

// readOldRows reads the requests of a stretch that are not in packs yet.
func readOldRows(ctx context.Context, tx *sql.Tx, d *dictionary, k *kept, r stretch, c *chosen, to take) error {
	var b batch
	if err := readBatch(ctx, tx, d, &b, oldRows, max(r.from, k.old), r.to, k.oldRows); err != nil {
		return err
	}
	for i := range b.len() {
		if c.has(b.key[i], b.shape[i]) {
			u := b.used(i)
			to(r.label, b.key[i], b.shape[i], &u)
		}
	}
	return nil
}

// oldTimes finds the requests of a page that are not in packs yet.
func oldTimes(ctx context.Context, tx *sql.Tx, q *RequestQuery, k *kept, from, to int64, found *newest) error {
	b := &builder{}
	where := b.within("r.at", from, to) + b.filter(&q.RequestFilter) + q.behind(b) + ` AND r.rowid <= ` + b.param(k.oldRows)
	var at int64
	err := rows(ctx, tx, `SELECT r.at FROM requests r JOIN shapes s ON s.id = r.shape WHERE `+where+
		` ORDER BY r.at DESC, r.id DESC LIMIT `+b.param(q.Limit+1), func(r *sql.Rows) error {
		err := r.Scan(&at)
		found.add(at)
		return err
	}, b.args...)
	found.trim()
	return err
}

const oldRows = `r.at >= $1 AND r.at < $2 AND r.rowid <= $3`

// convert moves what earlier versions wrote into packs and sums, one day in each transaction. It can be interrupted, and continues after
// the last day that it has finished.
func (s *Store) convert(ctx context.Context, log *slog.Logger) error {
	begun, days := time.Now(), 0
	for {
		done, err := s.convertDay(ctx)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if days++; days == 1 {
			log.Info("usage of earlier versions is being moved to its new form: statistics take longer meanwhile")
		}
		if err := pause(ctx, trimPause); err != nil {
			return err
		}
	}
	if days > 0 {
		log.Info("usage of earlier versions has its new form", "days", days, "seconds", math.Round(time.Since(begun).Seconds()))
	}
	return s.dropOld(ctx)
}

// convertDay converts the first day that is left.
func (s *Store) convertDay(ctx context.Context) (done bool, err error) {
	var k kept
	var packs map[int64]*batch
	var hours map[int64]*levels
	err = s.read(ctx, func(tx *sql.Tx) error {
		var d *dictionary
		if k, d, err = s.begin(ctx, tx); err != nil || k.old < 0 {
			return err
		}
		var b batch
		if err := readBatch(ctx, tx, d, &b, oldRows, k.old, k.old+dayMS, k.oldRows); err != nil {
			return err
		}
		packs = b.byHour()
		if k.old >= k.rows {
			hours = k.sumUp(d, packs)
			return nil
		}
		// Only sums are left of this day.
		l := newLevels(d)
		hours = map[int64]*levels{k.old: l}
		err := oldCells(ctx, tx, d, byAll, ` AND width = $1 AND start = $2`, func(_, key, shape int64, u *used) { l.addDay(key, shape, u) }, dayMS, k.old)
		for _, kind := range hourKinds {
			if err != nil {
				return err
			}
			err = oldCells(ctx, tx, d, kind, ` AND width = $1 AND start >= $2 AND start < $3`, func(start, key, shape int64, u *used) {
				if hours[start] == nil {
					hours[start] = newLevels(d)
				}
				hours[start].hour[kind].add(cell{key, shape}, u)
			}, hourMS, k.old, k.old+dayMS)
		}
		return err
	})
	if err != nil || k.old < 0 {
		return true, err
	}
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		now, err := readKept(ctx, tx)
		if err != nil || now.old != k.old || now.closed != k.closed || now.rows != k.rows {
			return err // try again
		}
		for hour, b := range packs {
			if err := addPack(ctx, tx, hour, b); err != nil {
				return err
			}
		}
		for hour, l := range hours {
			if err := l.save(ctx, tx, hour); err != nil {
				return err
			}
		}
		var last int64
		err = tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(start), 0) FROM usage_sum WHERE kind = $1 AND width = $2`, oldOthers, dayMS).Scan(&last)
		if err != nil {
			return err
		}
		if k.old += dayMS; k.old > last {
			k.old = -1
		}
		return setMark(ctx, tx, "old", k.old)
	})
	return false, err
}

// addOldTotals adds the totals of all time of earlier versions. It does so once, before the first answer.
func (s *Store) addOldTotals(ctx context.Context) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, d, err := s.begin(ctx, tx)
		if err != nil || k.old < 0 || k.totals {
			return err
		}
		for _, kind := range foreverKinds {
			c := cells{}
			add := func(_, key, shape int64, u *used) { c.add(cell{key, shape}, u) }
			if err := oldCells(ctx, tx, d, kind, ` AND width = $1 AND start = $2`, add, foreverMS, 0); err != nil {
				return err
			}
			if err := addCells(ctx, tx, kind, foreverMS, 0, c); err != nil {
				return err
			}
		}
		c := cells{}
		err = rows(ctx, tx, `SELECT key, bucket, count FROM usage_latency WHERE key <> '*'`, func(r *sql.Rows) error {
			var key string
			var bucket, count int64
			err := r.Scan(&key, &bucket, &count)
			c.add(cell{d.keyIDs[key], bucket}, &used{ofCount: count})
			return err
		})
		if err == nil {
			err = addCells(ctx, tx, byKey|byBucket, foreverMS, 0, c)
		}
		if err != nil {
			return err
		}
		return setMark(ctx, tx, "totals", 1)
	})
}

// dropOld removes the tables and indexes of earlier versions, if nothing reads them any more.
func (s *Store) dropOld(ctx context.Context) error {
	var k kept
	var left []string
	err := s.read(ctx, func(tx *sql.Tx) (err error) {
		if k, err = readKept(ctx, tx); err != nil {
			return err
		}
		return rows(ctx, tx, `SELECT type || ' IF EXISTS ' || name FROM sqlite_master
			WHERE name IN ('usage_sum', 'usage_period', 'usage_latency', 'requests_key_at', 'requests_shape_at')`, func(r *sql.Rows) error {
			var what string
			err := r.Scan(&what)
			left = append(left, what)
			return err
		})
	})
	if err != nil || k.old >= 0 {
		return err
	}
	for _, what := range left {
		err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `DROP `+what)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
