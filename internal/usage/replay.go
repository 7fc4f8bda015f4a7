package usage

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// damagedSuffix replaces a segment's suffix when a part of it could not be read: the file is kept for a person to look at.
const damagedSuffix = ".damaged"

// replay moves what the journal holds into the store and removes it. It returns the highest segment number in use. Rows that
// reached the store before, or in an earlier try, are there under their ids and are not counted twice.
func (b *Books) replay(ctx context.Context, dir string) (last int64, err error) {
	found, last, err := findSegments(dir)
	if err != nil || len(found) == 0 {
		return last, err
	}
	r := replayer{books: b, ctx: ctx, open: make(map[string]api.Record), alive: lastBeat(dir)}
	damaged := make(map[string]bool)
	for _, s := range found {
		whole, err := r.segment(s.path)
		if err != nil {
			return last, err
		}
		damaged[s.path] = !whole
	}
	ended, interrupted, err := r.finish()
	if err != nil {
		return last, err
	}
	if ended+interrupted > 0 {
		b.log.Info("the journal of the last run was booked", "rows", ended, "interrupted", interrupted)
	}
	_ = os.Remove(beatPath(dir)) // where it stays, what is admitted later is the later sign
	for _, s := range found {
		if damaged[s.path] {
			err = os.Rename(s.path, strings.TrimSuffix(s.path, segmentSuffix)+damagedSuffix)
		} else {
			err = os.Remove(s.path)
		}
		if err != nil {
			return last, err
		}
	}
	return last, nil
}

// replayer reads segments in order and books what ended as it goes.
type replayer struct {
	books  *Books
	ctx    context.Context
	open   map[string]api.Record // admissions whose end was not read
	alive  time.Time             // when the process is known to have been alive
	rows   []api.Record
	booked int
}

// segment reads one file up to its first unreadable byte. It says whether all of it was read but for a torn tail.
func (r *replayer) segment(path string) (whole bool, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	for rest := data; len(rest) > 0; {
		payload, next, err := nextFrame(rest)
		var kind byte
		var record api.Record
		if err == nil {
			kind, record, err = decode(payload)
		}
		if err != nil {
			r.books.log.Warn("the end of a journal file cannot be read", "file", path, "at", len(data)-len(rest), "bytes dropped", len(rest), "error", err)
			return errors.Is(err, errTorn), nil
		}
		rest = next
		if kind == kindAdmit {
			r.open[record.ID] = record
			r.alive = later(r.alive, record.At)
			continue
		}
		delete(r.open, record.ID)
		if err := r.book(record); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (r *replayer) book(record api.Record) error {
	r.rows = append(r.rows, record)
	if len(r.rows) < batchRows {
		return nil
	}
	return r.commit()
}

func (r *replayer) commit() error {
	if len(r.rows) == 0 {
		return nil
	}
	n, err := r.books.addRecords(r.ctx, r.rows)
	r.booked += n
	r.rows = r.rows[:0]
	return err
}

// finish books what never ended. It returns how many rows were new to the store.
func (r *replayer) finish() (ended, interrupted int, err error) {
	if err := r.commit(); err != nil {
		return 0, 0, err
	}
	ended = r.booked
	left := make([]api.Admission, 0, len(r.open))
	for _, record := range r.open {
		left = append(left, record.Admission)
	}
	for _, record := range interruptedRecords(left, r.alive) {
		if err := r.book(record); err != nil {
			return 0, 0, err
		}
	}
	err = r.commit()
	return ended, r.booked - ended, err
}

// interruptedRecords are the rows of requests that were admitted and whose end nobody saw, in their order. What they used is an
// estimate: of the answer nobody knows more than what was held for it. The time until end is divided among those that ran.
func interruptedRecords(list []api.Admission, end time.Time) []api.Record {
	slices.SortFunc(list, func(a, b api.Admission) int { return a.At.Compare(b.At) })
	rows := make([]api.Record, 0, len(list))
	for _, a := range list {
		rows = append(rows, api.Record{
			Admission: a, Outcome: api.OutcomeInterrupted, ErrorCode: api.CodeInterrupted,
			PromptTokens: a.PromptEstimate, Estimated: true, GPU: -1, Reserved: a.PromptEstimate + a.OutputEstimate,
		})
	}
	shareGPU(rows, end)
	return rows
}

// shareGPU divides the time until end, for each backend, among the rows that ran on it, which stand in their order: the one that
// came last ran with all before it, from its begin to the end.
func shareGPU(rows []api.Record, end time.Time) {
	type share struct {
		running int64
		each    time.Duration // what one that was there from the start would have
		at      time.Time
	}
	shares := map[string]*share{}
	began := make([]time.Duration, len(rows))
	move := func(s *share, to time.Time) {
		if passed := to.Sub(s.at); s.running > 0 && passed > 0 {
			s.each += passed / time.Duration(s.running)
		}
		s.at = to
	}
	for i := range rows {
		if rows[i].Class != inferenceClass {
			continue // nothing else has a slot
		}
		s := shares[rows[i].Backend]
		if s == nil {
			s = &share{}
			shares[rows[i].Backend] = s
		}
		move(s, rows[i].At)
		s.running++
		began[i] = s.each
	}
	for _, s := range shares {
		move(s, later(end, s.at))
	}
	for i := range rows {
		if rows[i].Class == inferenceClass {
			rows[i].ReservedGPU = shares[rows[i].Backend].each - began[i]
		}
	}
}
