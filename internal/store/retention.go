package store

import (
	"context"
	"database/sql"
	"log/slog"
	"time"
)

// Retention is how long usage is stored. 0 stores it forever. The totals of each key are always stored forever.
type Retention struct {
	Rows    time.Duration // single requests, sums by quarter of an hour, hours of every combination, and tallies
	Rollups time.Duration // all other sums by hour and by day
	// Running is a clock that advances steadily, even if the wall clock is changed. Nil means the wall clock.
	Running func() time.Time
}

const (
	keepMinutes = 48 * time.Hour // for the ends of the most frequent queries, about the last hours
	trimEvery   = time.Hour
	// A batch of deletions may block writers for about trimTime. Then it pauses for twice as long.
	trimTime            = 10 * time.Millisecond
	leastTrim, mostTrim = 20, 2000
	trimPause           = 5 * time.Millisecond // at least
	trimRetry           = time.Minute
)

// Trim deletes old data periodically until ctx ends, in small batches so that no writer waits long. It logs what it deleted, and
// failures. If the clock was changed by more than a day, or the newest row is older than half of keep.Rows, it waits up to seven days,
// because a wrong clock would delete usage.
func (s *Store) Trim(ctx context.Context, keep Retention, now func() time.Time, log *slog.Logger) {
	t := trimmer{store: s, pause: pause}
	running := keep.Running
	if running == nil {
		running = now
	}
	var last time.Time
	for {
		begun, wait, passed := now(), trimEvery, time.Duration(-1)
		read := running()
		if !last.IsZero() {
			passed = max(read.Sub(last), 0)
		}
		before := s.TrimWaits()
		waits, err := s.guarded(ctx, keep, begun, passed)
		if err == nil {
			last = read
		}
		var deleted int64
		if err == nil && waits == nil {
			deleted, err = t.trim(ctx, keep, begun)
		}
		switch {
		case err == nil && waits != nil && before == nil:
			log.Warn("retention is paused, although RETENTION_ROWS and RETENTION_ROLLUPS apply: check the clock of the machine", "cause", waits.Reason, "until", waits.Until)
		case err == nil && waits == nil && before != nil:
			log.Info("retention continues: data older than RETENTION_ROWS and RETENTION_ROLLUPS is deleted again", "rows", deleted)
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Warn("old requests cannot be deleted now; trying again in a minute", "cause", err.Error())
			wait = trimRetry
		case deleted > 0:
			log.Info("deleted data older than RETENTION_ROWS and RETENTION_ROLLUPS", "rows", deleted, "seconds", now().Sub(begun).Seconds())
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// trimmer deletes in batches. The time that a batch takes determines the size of the next one.
type trimmer struct {
	store *Store
	batch int
	pause func(context.Context, time.Duration) error
}

// trim deletes everything that is too old at now. It first records the new limits, so that no query counts half-deleted data.
func (t *trimmer) trim(ctx context.Context, keep Retention, now time.Time) (deleted int64, err error) {
	k, err := t.store.setKept(ctx, keep, now)
	if err != nil {
		return 0, err
	}
	for _, d := range []struct {
		statement string
		before    int64
		kinds     []kind
		widths    []int64
	}{
		{deleteRows, k.rows, []kind{0}, []int64{0}},
		{deleteTallies, k.rows, []kind{0}, []int64{0}},
		{deletePeriods, k.rows, []kind{0}, []int64{hourMS}},
		{deletePeriods, k.rollups, []kind{0}, []int64{dayMS}},
		{deleteSums, k.minutes, []kind{byKey, byOthers}, []int64{minuteMS}},
		{deleteSums, k.rows, []kind{byKey, byOthers}, []int64{quarterMS}},
		{deleteSums, k.rollups, append([]kind{byOthers}, singles...), []int64{hourMS, dayMS, blockMS}},
		{deleteSums, k.rollups, pairs, []int64{dayMS, blockMS}},
	} {
		for _, k := range d.kinds {
			for _, width := range d.widths {
				n, err := t.delete(ctx, d.statement, d.before, k, width)
				deleted += n
				if err != nil {
					return deleted, err
				}
			}
		}
	}
	return deleted, nil
}

const (
	deleteRows    = `DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE at < $1 AND $2 = $3 ORDER BY at LIMIT $4)`
	deleteTallies = `DELETE FROM tallies WHERE (minute, who, what) IN (SELECT minute, who, what FROM tallies WHERE minute < $1 AND $2 = $3 ORDER BY minute LIMIT $4)`
	deletePeriods = `DELETE FROM usage_period WHERE (width, start, key, model, endpoint, backend, outcome) IN
		(SELECT width, start, key, model, endpoint, backend, outcome FROM usage_period WHERE start < $1 AND $2 = 0 AND width = $3 ORDER BY start LIMIT $4)`
	deleteSums = `DELETE FROM usage_sum WHERE (kind, width, start, model, endpoint, backend, outcome, key) IN
		(SELECT kind, width, start, model, endpoint, backend, outcome, key FROM usage_sum WHERE start < $1 AND kind = $2 AND width = $3 ORDER BY start LIMIT $4)`
)

// delete runs one statement until it finds no more rows.
func (t *trimmer) delete(ctx context.Context, statement string, before int64, k kind, width int64) (deleted int64, err error) {
	if before == 0 {
		return 0, nil
	}
	t.batch = max(t.batch, leastTrim)
	for {
		var n int64
		var begun time.Time
		err := t.store.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			begun = time.Now() // not earlier: the transaction may have waited for others
			done, err := tx.ExecContext(ctx, statement, before, int64(k), width, t.batch)
			if err != nil {
				return err
			}
			n, err = done.RowsAffected()
			return err
		})
		took := time.Since(begun)
		deleted += n
		if err != nil || n < int64(t.batch) {
			return deleted, err
		}
		switch {
		case took > trimTime:
			t.batch = max(t.batch/2, leastTrim)
		case took < trimTime/2:
			t.batch = min(t.batch*2, mostTrim)
		}
		if err := t.pause(ctx, max(2*took, trimPause)); err != nil {
			return deleted, err
		}
	}
}

// setKept records what is kept from now on. The limits never move back: deleted data does not return if the settings or the clock change.
func (s *Store) setKept(ctx context.Context, keep Retention, now time.Time) (k kept, err error) {
	since := func(d time.Duration, step int64) int64 {
		if d == 0 {
			return 0
		}
		return max(0, down(millis(now.Add(-d)), step))
	}
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for what, ms := range map[string]int64{
			"minutes": since(keepMinutes, hourMS), "rows": since(keep.Rows, dayMS), "rollups": since(keep.Rollups, blockMS),
		} {
			if _, err := tx.ExecContext(ctx, `UPDATE kept SET since = $1 WHERE what = $2 AND since < $1`, ms, what); err != nil {
				return err
			}
		}
		k, err = readKept(ctx, tx)
		return err
	})
	return k, err
}
