package store

import (
	"context"
	"database/sql"
	"log/slog"
	"time"
)

// Retention is how long usage is stored. 0 stores it forever. The totals of each key are always stored forever.
type Retention struct {
	Rows    time.Duration // single requests, packs and tallies
	Rollups time.Duration // sums by hour and by day
	// Running is a clock that advances steadily, even if the wall clock is changed. Nil means the wall clock.
	Running func() time.Time
}

const (
	trimEvery = time.Hour
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

const (
	sumEvery = 10 * time.Second
	// graceMS is how long an hour stays open for requests that are booked late. Later ones are added to its sums one by one.
	graceMS = 10 * minuteMS
)

// SumUp computes the sums of past hours and days until ctx ends, and first moves what earlier versions wrote into the tables of this one.
// Answers are exact without it, but take longer.
func (s *Store) SumUp(ctx context.Context, now func() time.Time, log *slog.Logger) {
	failed := false
	for {
		err := s.convert(ctx, log)
		if err == nil {
			err = s.closeHours(ctx, down(millis(now())-graceMS, hourMS))
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed {
			log.Warn("usage cannot be summed up now, so statistics take longer; trying again", "cause", err.Error())
		}
		failed = err != nil
		if pause(ctx, sumEvery) != nil {
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
	// What is deleted must be in all sums before.
	if err := t.store.foldAll(ctx); err != nil {
		return 0, err
	}
	if err := t.store.closeHours(ctx, k.rows); err != nil {
		return 0, err
	}
	for _, d := range []struct {
		statement string
		before    int64
	}{{deletePacks, k.rows}, {deleteRows, k.rows}, {deleteTallies, k.rows}, {deleteSums, k.rollups}} {
		n, err := t.delete(ctx, d.statement, d.before)
		deleted += n
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

const (
	deletePacks   = `DELETE FROM packs WHERE rowid IN (SELECT rowid FROM packs WHERE hour < $1 ORDER BY hour LIMIT 1 + $2 / 500)`
	deleteRows    = `DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests WHERE at < $1 ORDER BY at LIMIT $2)`
	deleteTallies = `DELETE FROM tallies WHERE (minute, who, what) IN (SELECT minute, who, what FROM tallies WHERE minute < $1 ORDER BY minute LIMIT $2)`
	deleteSums    = `DELETE FROM sums WHERE rowid IN (SELECT rowid FROM sums WHERE width > 0 AND start < $1 LIMIT 1 + $2 / 20)`
)

// delete runs one statement until it finds no more rows.
func (t *trimmer) delete(ctx context.Context, statement string, before int64) (deleted int64, err error) {
	if before == 0 {
		return 0, nil
	}
	t.batch = max(t.batch, leastTrim)
	for {
		var n int64
		var begun time.Time
		err := t.store.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			begun = time.Now() // not earlier: the transaction may have waited for others
			done, err := tx.ExecContext(ctx, statement, before, t.batch)
			if err != nil {
				return err
			}
			n, err = done.RowsAffected()
			return err
		})
		took := time.Since(begun)
		deleted += n
		if err != nil || n == 0 {
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
			"rows": since(keep.Rows, dayMS), "rollups": since(keep.Rollups, dayMS),
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
