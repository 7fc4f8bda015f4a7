package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// mostWait is how long retention waits at most, in running time of the service.
	mostWait = 7 * 24 * time.Hour
	// clockStep is the largest difference between the clock and its expected value that is not suspicious.
	clockStep = 24 * time.Hour
)

// guard prevents a wrong clock from deleting usage. It is stored, because a clock is often wrong at a start.
type guard struct {
	Clock  int64 `json:"clock"`  // the expected wall clock at Seen in milliseconds: its last trusted value plus the time since
	Seen   int64 `json:"seen"`   // the wall clock at the last check
	Waited int64 `json:"waited"` // milliseconds; the wait ends at mostWait
}

// look returns why nothing may be deleted now, or "". passed is the time since the last check, or negative if it is unknown, as at a
// start. newest is the time of the newest row. half is half of the time that rows are kept; 0 means unlimited.
func (g *guard) look(now, newest time.Time, passed, half time.Duration) string {
	wall := millis(now)
	if g.Clock == 0 {
		g.Clock, g.Seen = wall, wall
	}
	step := passed.Milliseconds()
	if passed < 0 {
		step = min(max(wall-g.Seen, 0), trimEvery.Milliseconds())
	} else {
		g.Clock += step
	}
	g.Seen = wall
	off := now.Sub(instant(g.Clock))
	stepped := off.Abs() > clockStep
	idle := half > 0 && !newest.IsZero() && now.Sub(newest) > half
	over := g.Waited >= mostWait.Milliseconds()
	switch {
	case !stepped && !idle:
		g.Clock, g.Waited = wall, 0
		return ""
	case stepped && over:
		g.Waited = 0 // the earlier wait had another reason
	case over:
		g.Clock = wall
		return ""
	}
	if g.Waited += step; g.Waited >= mostWait.Milliseconds() {
		g.Clock = wall
		return ""
	}
	if stepped {
		return fmt.Sprintf("the clock is %.1f days off its expected value: the clock was changed, or the service was off that long", inDays(off.Abs()))
	}
	return fmt.Sprintf("the newest request is %.1f days old, more than half of the time that requests are kept: the clock may be wrong, or an old backup was restored",
		inDays(now.Sub(newest)))
}

func inDays(d time.Duration) float64 { return d.Hours() / 24 }

// TrimWait reports that retention deletes nothing now, and why.
type TrimWait struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"` // when it deletes at the latest, if the service keeps running
}

// TrimWaits returns why Trim waits, or nil.
func (s *Store) TrimWaits() *TrimWait { return s.waits.Load() }

// guarded checks the clock and the newest row, and sets the result of TrimWaits.
func (s *Store) guarded(ctx context.Context, keep Retention, now time.Time, passed time.Duration) (*TrimWait, error) {
	newest, err := s.Newest(ctx)
	if err != nil {
		return nil, err
	}
	half := keep.Rows / 2
	if keep.Rows == 0 {
		half = keep.Rollups / 2
	}
	var wait *TrimWait
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var g guard
		var text []byte
		err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = $1`, guardName).Scan(&text)
		if err == nil {
			err = json.Unmarshal(text, &g)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if reason := g.look(now, newest, passed, half); reason != "" {
			wait = &TrimWait{reason, now.Add(mostWait - time.Duration(g.Waited)*time.Millisecond).UTC().Truncate(time.Second)}
		}
		if text, err = json.Marshal(g); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, guardName, text)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.waits.Store(wait)
	return wait, nil
}

const guardName = "retention"

// Newest returns when the newest request was admitted, which may be in the future if a clock was wrong. It returns zero without requests.
func (s *Store) Newest(ctx context.Context) (time.Time, error) {
	var at sql.NullInt64
	err := s.read(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT MAX(at) FROM requests`).Scan(&at)
	})
	if err != nil || !at.Valid {
		return time.Time{}, err
	}
	return instant(at.Int64), nil
}
