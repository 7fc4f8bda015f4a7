package usage

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

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
	r := replayer{books: b, ctx: ctx, open: make(map[string]api.Record)}
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
	left := make([]api.Record, 0, len(r.open))
	for _, record := range r.open {
		left = append(left, interruptedRecord(record.Admission))
	}
	slices.SortFunc(left, func(a, b api.Record) int { return a.At.Compare(b.At) })
	for _, record := range left {
		if err := r.book(record); err != nil {
			return 0, 0, err
		}
	}
	err = r.commit()
	return ended, r.booked - ended, err
}

// interruptedRecord is the row of a request that was admitted and whose end nobody saw. What it used is an estimate.
func interruptedRecord(a api.Admission) api.Record {
	return api.Record{
		Admission: a, Outcome: api.OutcomeInterrupted, ErrorCode: api.CodeInterrupted,
		PromptTokens: a.PromptEstimate, Estimated: true, GPU: -1, Reserved: a.PromptEstimate + a.OutputEstimate,
	}
}
