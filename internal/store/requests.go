package store

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// rowColumns are the stored columns, and rowNames are those as a query of requests r and their shapes s reads them. The names that a
// shape has are only in it.
var (
	rowColumns = api.StoredColumns()
	rowNames   = func() string {
		names := namesOf(rowColumns)
		for i, c := range rowColumns {
			if inShape(c) {
				names[i] = "s." + names[i]
			} else {
				names[i] = "r." + names[i]
			}
		}
		return strings.Join(names, ", ")
	}()
	ownColumns = slices.DeleteFunc(api.StoredColumns(), inShape)
)

func inShape(c *api.Column) bool { return slices.Contains(shapeColumns, c) }

// addRows returns the statement that adds some rows, and returns the rowids of those that are new. The first table had columns for some
// names of the shape. Its parameters have no names, because the driver would look up each of them in a list of all.
func addRows(n int) string {
	row := "(" + strings.Repeat("?, ", len(ownColumns)+2) + "'', '', '', ''), "
	return `INSERT INTO requests (rowid, shape, ` + strings.Join(namesOf(ownColumns), ", ") + `, model, endpoint, backend, outcome) VALUES ` +
		strings.TrimSuffix(strings.Repeat(row, n), ", ") + ` ON CONFLICT (id) DO NOTHING RETURNING rowid`
}

// rowsAtOnce is how many rows a statement adds if there are as many.
const rowsAtOnce = 50

var addMany, addOne = addRows(rowsAtOnce), addRows(1)

// AddRecords adds requests in one transaction and returns how many were new. A record whose ID already exists changes nothing, so that a
// batch can be repeated if its outcome is unknown.
func (s *Store) AddRecords(ctx context.Context, recs []api.Record) (inserted int, err error) {
	if len(recs) == 0 {
		return 0, nil
	}
	var newest, last int64
	var grown *batch
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		k, d, err := s.begin(ctx, tx)
		if err != nil {
			return err
		}
		before, err := s.tail.in(ctx, tx, d, k.folded)
		if err != nil {
			return err
		}
		newest = k.folded
		if n := before.len(); n > 0 {
			newest = before.n[n-1]
		}
		grown = before.clip()
		a := adder{tx: tx, names: d.writing(), batch: grown, next: newest + 1}
		if err := a.add(ctx, recs); err != nil {
			return err
		}
		inserted, last = a.added, newest
		if a.added > 0 {
			last = grown.n[grown.len()-1]
		}
		if grown.len() < s.foldRows {
			return nil
		}
		return s.fold(ctx, tx, &k, a.names.dictionary(), grown)
	})
	if err != nil {
		return 0, err
	}
	s.tail.added(newest, last, grown)
	return inserted, nil
}

// adder adds rows in a transaction.
type adder struct {
	tx    *sql.Tx
	names *writing
	batch *batch
	next  int64 // rowid
	added int
}

func (a *adder) add(ctx context.Context, recs []api.Record) error {
	rest := len(recs) % rowsAtOnce
	if err := a.each(ctx, addMany, rowsAtOnce, recs[:len(recs)-rest]); err != nil {
		return err
	}
	return a.each(ctx, addOne, 1, recs[len(recs)-rest:])
}

// each adds rows with a statement for n of them.
func (a *adder) each(ctx context.Context, text string, n int, recs []api.Record) error {
	if len(recs) == 0 {
		return nil // to prepare a long statement takes longer than to add a row
	}
	statement, err := a.tx.PrepareContext(ctx, text)
	if err != nil {
		return err
	}
	defer statement.Close()
	for some := range slices.Chunk(recs, n) {
		if err := a.some(ctx, statement, some); err != nil {
			return err
		}
	}
	return nil
}

func (a *adder) some(ctx context.Context, statement *sql.Stmt, recs []api.Record) error {
	args := make([]any, 0, len(recs)*(len(ownColumns)+2))
	keys, shapes := make([]int64, len(recs)), make([]int64, len(recs))
	for i := range recs {
		r := &recs[i]
		var err error
		if keys[i], err = a.names.key(ctx, a.tx, r.Key); err != nil {
			return err
		}
		if shapes[i], err = a.names.shape(ctx, a.tx, shapeOf(r)); err != nil {
			return err
		}
		args = append(args, a.next+int64(i), shapes[i])
		for _, c := range ownColumns {
			args = append(args, c.Stored(r))
		}
	}
	done, err := statement.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer done.Close()
	for done.Next() {
		var n int64
		if err := done.Scan(&n); err != nil {
			return err
		}
		i := n - a.next
		var amounts [sumCount]int64
		for k, c := range sumColumns {
			amounts[k] = c.Amount(&recs[i])
		}
		a.batch.add(n, millis(recs[i].At), keys[i], shapes[i], &amounts)
		a.added++
	}
	a.next += int64(len(recs))
	return done.Err()
}

// AddTallies adds counts to the per-minute counters. It is not idempotent.
func (s *Store) AddTallies(ctx context.Context, t []api.Tally) error {
	if len(t) == 0 {
		return nil
	}
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		add, err := tx.PrepareContext(ctx, `INSERT INTO tallies (minute, who, what, count) VALUES ($1, $2, $3, $4)
			ON CONFLICT (minute, who, what) DO UPDATE SET count = tallies.count + excluded.count`)
		if err != nil {
			return err
		}
		defer add.Close()
		for _, c := range t {
			if _, err := add.ExecContext(ctx, millis(c.Minute.Truncate(time.Minute)), c.Who, c.What, c.Count); err != nil {
				return err
			}
		}
		return nil
	})
}

// Admitted is the number of requests of a key that were admitted in one minute.
type Admitted struct {
	Key    string
	Minute time.Time // start of the minute
	Count  int64
}

// Used is the usage of a key's requests that ended in one minute.
type Used struct {
	Key    string
	Minute time.Time // start of the minute
	Tokens int64
	GPU    time.Duration
}

// UsedSince sums up the usage of the requests that ended from since to now, by key and minute of their end, in that order. No request
// took longer than longest. If the end of a request was not recorded, it counts as ended at the latest possible time, with its reserved
// amounts as usage, so that a killed request is never cheaper. Requests dated in the future, because of a wrong clock, are left out.
func (s *Store) UsedSince(ctx context.Context, since, now time.Time, longest time.Duration) ([]Used, error) {
	var all []Used
	err := s.read(ctx, func(tx *sql.Tx) error {
		// The reserved GPU time was measured with the wall clock across a kill: limit it to the longest time of a request.
		return rows(ctx, tx, `SELECT key, (CAST(CASE WHEN ended > $3 THEN $3 ELSE ended END AS INTEGER) / 60000) * 60000 AS minute,
			SUM(CASE WHEN reserved_tokens > tokens THEN reserved_tokens ELSE tokens END), SUM(COALESCE(gpu_ms, held, 0.0))
			FROM (SELECT key, at + CASE WHEN total_ms > 0 THEN total_ms ELSE $2 END AS ended,
				reserved_tokens, prompt_tokens + completion_tokens AS tokens,
				gpu_ms, CASE WHEN reserved_gpu_ms > $2 THEN $2 ELSE reserved_gpu_ms END AS held
				FROM requests WHERE at >= $1 - $2 AND at <= $3 AND error_code <> 'no_backend') AS used
			GROUP BY key, minute HAVING minute >= $1 ORDER BY key, minute`,
			func(r *sql.Rows) error {
				var u Used
				var minute int64
				var gpu float64
				if err := r.Scan(&u.Key, &minute, &u.Tokens, &gpu); err != nil {
					return err
				}
				u.Minute, u.GPU = instant(minute), api.FromMilliseconds(gpu)
				all = append(all, u)
				return nil
			}, millis(since), longest.Milliseconds(), millis(now))
	})
	return all, err
}

// AdmittedSince counts the requests from since on by key and minute of admission, in that order. A request that no backend accepted was
// returned to its key and does not count.
func (s *Store) AdmittedSince(ctx context.Context, since time.Time) ([]Admitted, error) {
	var all []Admitted
	err := s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, `SELECT key, (at / 60000) * 60000 AS minute, COUNT(*) FROM requests WHERE at >= $1 AND error_code <> 'no_backend'
			GROUP BY key, minute ORDER BY key, minute`,
			func(r *sql.Rows) error {
				var a Admitted
				var minute int64
				if err := r.Scan(&a.Key, &minute, &a.Count); err != nil {
					return err
				}
				a.Minute = instant(minute)
				all = append(all, a)
				return nil
			}, millis(since))
	})
	return all, err
}
