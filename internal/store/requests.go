package store

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// rowColumns are the columns of a row in the database, without its shape.
var rowColumns = api.StoredColumns()

var rowNames = func() string {
	var names []string
	for _, c := range rowColumns {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}()

var addRecord = func() string {
	var b builder
	for range len(rowColumns) + 1 {
		b.param(nil)
	}
	return `INSERT INTO requests (` + rowNames + `, shape) VALUES (` + b.list() + `) ON CONFLICT (id) DO NOTHING`
}()

// AddRecords adds requests in one transaction and returns how many were new. A record whose ID already exists changes nothing, so that a
// batch can be repeated if its outcome is unknown.
func (s *Store) AddRecords(ctx context.Context, recs []api.Record) (inserted int, err error) {
	if len(recs) == 0 {
		return 0, nil
	}
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		add, err := tx.PrepareContext(ctx, addRecord)
		if err != nil {
			return err
		}
		defer add.Close()
		var minutes int64
		if err := tx.QueryRowContext(ctx, `SELECT since FROM kept WHERE what = 'minutes'`).Scan(&minutes); err != nil {
			return err
		}
		sums, known := newRollup(minutes), shapes{}
		for i := range recs {
			number, err := known.of(ctx, tx, &recs[i])
			if err != nil {
				return err
			}
			done, err := add.ExecContext(ctx, append(recordRow(&recs[i]), number)...)
			if err != nil {
				return err
			}
			n, err := done.RowsAffected()
			if err != nil {
				return err
			}
			if n > 0 {
				sums.add(&recs[i])
				inserted++
			}
		}
		return sums.save(ctx, tx)
	})
	if err != nil {
		return 0, err
	}
	return inserted, nil
}

// shape is a combination of names that requests have in common. The list finds requests by it.
type shape struct {
	model, endpoint, backend string
	outcome                  api.Outcome
}

// shapes are the numbers of the shapes in a transaction.
type shapes map[shape]int64

func (known shapes) of(ctx context.Context, tx *sql.Tx, r *api.Record) (id int64, err error) {
	s := shape{r.Model, r.Endpoint, r.Backend, r.Outcome}
	if id, ok := known[s]; ok {
		return id, nil
	}
	// The update, which changes nothing, makes SQLite return the number of an existing shape too.
	err = tx.QueryRowContext(ctx, `INSERT INTO shapes (model, endpoint, backend, outcome) VALUES ($1, $2, $3, $4)
		ON CONFLICT (model, endpoint, backend, outcome) DO UPDATE SET model = excluded.model RETURNING id`,
		s.model, s.endpoint, s.backend, string(s.outcome)).Scan(&id)
	known[s] = id
	return id, err
}

// recordRow returns a record's stored columns.
func recordRow(r *api.Record) []any {
	row := make([]any, len(rowColumns), len(rowColumns)+1)
	for i, c := range rowColumns {
		row[i] = c.Stored(r)
	}
	return row
}

// milliseconds keeps fractions.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

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
				u.Minute, u.GPU = instant(minute), duration(gpu)
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
