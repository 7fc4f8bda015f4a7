package books

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// damagedSuffix replaces the suffix of a segment that could not be read completely. The file is kept for investigation.
const damagedSuffix = ".damaged"

// Found is what a start found in the journal of the previous run.
type Found struct {
	Rows         int   `json:"rows"`          // rows that were not in the store yet
	Interrupted  int   `json:"interrupted"`   // requests whose end is not in the journal
	TornBytes    int64 `json:"torn_bytes"`    // unreadable bytes at the end of a file, after a kill or a power failure
	Damaged      int   `json:"damaged"`       // other places that cannot be read
	DamagedBytes int64 `json:"damaged_bytes"` // bytes in those places
}

// replay moves the rows in the journal into the store and removes the journal. It returns the highest segment number in use. Rows that
// are already in the store, even from an earlier attempt, have the same IDs and are not counted twice.
func (b *Books) replay(ctx context.Context, dir string) (last int64, err error) {
	segments, last, err := findSegments(dir)
	if err != nil || len(segments) == 0 {
		return last, err
	}
	r := replayer{books: b, ctx: ctx, open: make(map[string]api.Record), found: &b.found, alive: lastBeat(dir)}
	damaged := make(map[string]bool)
	for _, s := range segments {
		before := b.found.Damaged
		if err := r.segment(s.path); err != nil {
			return last, err
		}
		damaged[s.path] = b.found.Damaged > before
	}
	if err := r.finish(); err != nil {
		return last, err
	}
	if n := b.found; n.Rows+n.Interrupted > 0 {
		b.log.Info("imported the journal of the last run", "rows", n.Rows, "interrupted", n.Interrupted)
	}
	_ = os.Remove(beatPath(dir)) // if it stays, later admissions are newer
	if n := b.found; n.Damaged > 0 {
		b.log.Error("parts of the journal are damaged, and requests that are only in those parts are lost; the files are kept next to the journal as *"+damagedSuffix+": check the disk, then delete them",
			"places", n.Damaged, "bytes", n.DamagedBytes)
	}
	for _, s := range segments {
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

// replayer reads segments in order and writes the rows that have ended to the store.
type replayer struct {
	books  *Books
	ctx    context.Context
	open   map[string]api.Record // admissions whose end was not read
	alive  time.Time             // the last time when the process was known to be alive
	rows   []api.Record
	booked int
	found  *Found
}

// segment reads one file. After unreadable bytes it searches for the next record.
func (r *replayer) segment(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for rest := data; len(rest) > 0; {
		kind, record, next, err := readFrame(rest)
		if err != nil {
			gap := nextReadable(rest)
			r.unreadable(path, len(data)-len(rest), gap, len(rest), err)
			rest = rest[gap:]
			continue
		}
		rest = next
		if err := r.take(kind, record); err != nil {
			return err
		}
	}
	return nil
}

func readFrame(b []byte) (kind byte, record api.Record, rest []byte, err error) {
	payload, rest, err := nextFrame(b)
	if err == nil {
		kind, record, err = decode(payload)
	}
	return kind, record, rest, err
}

// nextReadable returns the number of bytes before the next readable record, or the length of b.
func nextReadable(b []byte) int {
	for at := 1; at+frameHead+1 < len(b); at++ {
		if b[at+frameHead] != version { // a cheap check that excludes most places
			continue
		}
		if _, _, _, err := readFrame(b[at:]); err == nil {
			return at
		}
	}
	return len(b)
}

// unreadable reports gap unreadable bytes at a position in a file, which has left bytes from there on.
func (r *replayer) unreadable(path string, at, gap, left int, err error) {
	if gap == left && errors.Is(err, errTorn) {
		r.found.TornBytes += int64(gap)
		r.books.log.Warn("the end of a journal file cannot be read, as after a kill or a power failure", "file", path, "at", at, "bytes dropped", gap, "cause", err)
		return
	}
	r.found.Damaged++
	r.found.DamagedBytes += int64(gap)
	r.books.log.Error("a part of a journal file cannot be read", "file", path, "at", at, "bytes dropped", gap, "cause", err)
}

func (r *replayer) take(kind byte, record api.Record) error {
	switch kind {
	case kindAdmit:
		r.open[record.ID] = record
		r.alive = later(r.alive, record.At)
	case kindPassed:
		if a, ok := r.open[record.ID]; ok {
			a.CompletionTokens = record.CompletionTokens
			r.open[record.ID] = a
		}
	case kindEnd:
		delete(r.open, record.ID)
		return r.book(record)
	}
	return nil
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

// finish records the requests that never ended.
func (r *replayer) finish() error {
	if err := r.commit(); err != nil {
		return err
	}
	r.found.Rows = r.booked
	left := make([]api.Record, 0, len(r.open))
	for _, record := range r.open {
		left = append(left, record)
	}
	for _, record := range interruptedRecords(left, r.alive) {
		if err := r.book(record); err != nil {
			return err
		}
	}
	err := r.commit()
	r.found.Interrupted = r.booked - r.found.Rows
	return err
}

// interruptedRecords returns the rows of admitted requests whose end was not recorded, in order. Their usage is an estimate: the
// estimated prompt, and the pieces of the answer that the client may have received. The reserved amounts count against limits. The time
// until end is divided among the requests that ran.
func interruptedRecords(list []api.Record, end time.Time) []api.Record {
	slices.SortFunc(list, func(a, b api.Record) int { return a.At.Compare(b.At) })
	rows := make([]api.Record, 0, len(list))
	for _, r := range list {
		rows = append(rows, api.Record{
			Admission: r.Admission, Outcome: api.OutcomeInterrupted, ErrorCode: api.CodeInterrupted,
			PromptTokens: r.PromptEstimate, CompletionTokens: r.CompletionTokens, Estimated: true,
			GPU: -1, Queued: -1, Loading: -1, Reserved: r.PromptEstimate + max(r.OutputEstimate, r.CompletionTokens),
		})
	}
	shareGPU(rows, end)
	return rows
}

// shareGPU divides the time until end, for each backend, among its rows, which are in order. The row that came last shared the backend
// with all earlier ones, from its start to the end.
func shareGPU(rows []api.Record, end time.Time) {
	type share struct {
		running int64
		each    time.Duration // the share of a request that ran from the start
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
			continue // other requests hold no slot
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
