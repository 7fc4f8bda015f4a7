package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// recordColumns are the columns of a row in the order of appendRow.
var recordColumns = []string{"id", "client_request_id", "at", "key", "model", "alias", "endpoint", "class", "backend", "outcome", "status",
	"error_code", "streamed", "prompt_tokens", "completion_tokens", "estimated", "ttfb_ms", "total_ms", "slot_ms", "ollama_total_ns", "ollama_load_ns",
	"ollama_prompt_eval_ns", "ollama_eval_ns", "bytes_in", "bytes_out", "client_addr"}

// rowsPerInsert is how many rows one statement brings: half of a row's cost is that of a statement.
const rowsPerInsert = 25

// insertRecords is the statement for n rows. Its parameters are anonymous: the driver looks up the name of every one that
// has a name, $1 too, in a list as long as they are many (measured: 80 us a row with 650 named ones, 8 with anonymous ones).
// PostgreSQL wants $1 here.
func insertRecords(n int) string {
	row := "(?" + strings.Repeat(", ?", len(recordColumns)-1) + ")"
	return "INSERT INTO requests (" + strings.Join(recordColumns, ", ") + ") VALUES " + row + strings.Repeat(", "+row, n-1) + " ON CONFLICT (id) DO NOTHING"
}

var insertMany, insertOne = insertRecords(rowsPerInsert), insertRecords(1)

// errKnownRow says that a row of a batch is in the books already.
var errKnownRow = errors.New("a record of the batch is booked already")

// AddRecords books requests in one transaction and says how many were new: a record whose id is in the books already
// changes nothing, so that a batch may be added again when it is not known whether it was.
func (s *Store) AddRecords(ctx context.Context, recs []api.Record) (inserted int, err error) {
	if len(recs) == 0 {
		return 0, nil
	}
	add := func(many bool) error {
		return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			inserted, err = bookRecords(ctx, tx, recs, many)
			return err
		})
	}
	if err = add(true); errors.Is(err, errKnownRow) {
		// Rare, after a crash or a lost answer: row by row it shows which are new.
		err = add(false)
	}
	if err != nil {
		return 0, err
	}
	return inserted, nil
}

func bookRecords(ctx context.Context, tx *sql.Tx, recs []api.Record, many bool) (inserted int, err error) {
	insertN, err := tx.PrepareContext(ctx, insertMany)
	if err != nil {
		return 0, err
	}
	defer insertN.Close()
	insert1, err := tx.PrepareContext(ctx, insertOne)
	if err != nil {
		return 0, err
	}
	defer insert1.Close()
	sums := newRollup()
	args := make([]any, 0, rowsPerInsert*len(recordColumns))
	for rest := recs; len(rest) > 0; {
		n, insert := 1, insert1
		if many && len(rest) >= rowsPerInsert {
			n, insert = rowsPerInsert, insertN
		}
		args = args[:0]
		for i := range n {
			args = appendRow(args, &rest[i])
		}
		done, err := insert.ExecContext(ctx, args...)
		if err != nil {
			return 0, err
		}
		added, err := done.RowsAffected()
		switch {
		case err != nil:
			return 0, err
		case int(added) == n:
			for i := range n {
				sums.add(&rest[i])
			}
			inserted += n
		case many:
			return 0, errKnownRow
		}
		rest = rest[n:]
	}
	return inserted, sums.save(ctx, tx)
}

// appendRow adds a record's values in the order of recordColumns.
func appendRow(args []any, r *api.Record) []any {
	var firstByte any
	if r.FirstByte > 0 {
		firstByte = milliseconds(r.FirstByte)
	}
	return append(args,
		r.ID, r.ClientRequestID, millis(r.At), r.Key, r.Model, r.Alias, r.Endpoint, r.Class, r.Backend, string(r.Outcome), r.Status,
		string(r.ErrorCode), flag(r.Streamed), r.PromptTokens, r.CompletionTokens, flag(r.Estimated), firstByte, milliseconds(r.Total),
		milliseconds(r.Slot), nanoseconds(r.OllamaTotal), nanoseconds(r.OllamaLoad), nanoseconds(r.OllamaPromptEval),
		nanoseconds(r.OllamaEval), r.BytesIn, r.BytesOut, r.ClientAddr,
	)
}

// milliseconds keeps the fractions.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func nanoseconds(d *time.Duration) any {
	if d == nil {
		return nil
	}
	return d.Nanoseconds()
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

// Admitted is how many requests of a key were admitted in one minute.
type Admitted struct {
	Key    string
	Minute time.Time // start of the minute
	Count  int64
}

// AdmittedSince counts the booked requests from since on by key and minute of admission, in that order. A request that no
// backend took was given back to its key and does not count.
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
