package books

import (
	"context"
	"os"
	"slices"
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

// startRows is the number of rows that a start moves into the store before it returns. If the journal has more, they move while the
// service runs.
const startRows = 20_000

// replay moves the rows in the journal into the store and removes their files. Rows beyond startRows are queued, and their files stay.
// Rows that are already in the store, even from an earlier attempt, have the same IDs and are not counted twice.
func (b *Books) replay(ctx context.Context, dir string) error {
	segments, last, err := findSegments(dir)
	b.journal = journal{dir: dir, last: last}
	if err != nil || len(segments) == 0 {
		return err
	}
	r := replayer{books: b, ctx: ctx, open: make(map[string]api.Record), found: &b.found, alive: lastBeat(dir)}
	for _, s := range segments {
		if err := r.segment(s); err != nil {
			return err
		}
	}
	if err := r.finish(); err != nil {
		return err
	}
	if n := b.found; n.Rows+n.Interrupted > 0 {
		b.log.Info("imported the journal of the last run", "rows", n.Rows, "interrupted", n.Interrupted)
	}
	_ = os.Remove(beatPath(dir)) // if it stays, later admissions are newer
	if n := b.found; n.Damaged > 0 {
		b.log.Error("parts of the journal are damaged, and requests that are only in those parts are lost; the files are kept next to the journal as *"+damagedSuffix+": check the disk, then delete them",
			"places", n.Damaged, "bytes", n.DamagedBytes)
	}
	if b.queue.rows > 0 {
		b.log.Info("more rows of the last run move to the database while the service runs; until then, statistics do not have them", "rows", b.queue.rows)
	}
	for len(segments) > 0 && segments[0].chunks == 0 {
		if err := segments[0].discard(); err != nil {
			return err
		}
		segments = segments[1:]
	}
	b.journal.keep(segments)
	return syncPaths(segments)
}

// replayer reads segments in order and writes the rows that have ended to the store.
type replayer struct {
	books  *Books
	ctx    context.Context
	open   map[string]api.Record // admissions whose end was not read
	alive  time.Time             // the last time when the process was known to be alive
	rows   []api.Record
	moved  int  // rows that the store has taken, also if it had them
	booked int  // rows among them that it did not have
	later  bool // the other rows move later
	found  *Found
}

func (r *replayer) segment(s *segment) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	before := r.found.Damaged
	err = r.books.readFrames(s.path, f, 0, r.found, func(kind byte, record api.Record, from, to int64) error {
		s.size = to
		return r.take(kind, record, s, from, to)
	})
	s.damaged = r.found.Damaged > before
	return err
}

func (r *replayer) take(kind byte, record api.Record, in *segment, from, to int64) error {
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
		if !r.later {
			return r.book(record)
		}
		r.books.queue.found(in, from, to)
		if r.books.o.Later != nil {
			r.books.o.Later(&record)
		}
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

// commit moves a batch. Rows reach the store in the order of the journal, so once it had no row of a batch, it has none after it.
func (r *replayer) commit() error {
	if len(r.rows) == 0 {
		return nil
	}
	n, err := r.books.addRecords(r.ctx, r.rows)
	r.booked += n
	r.moved += len(r.rows)
	r.later = r.moved >= startRows && n == len(r.rows)
	r.rows = r.rows[:0]
	return err
}

// finish records the requests that never ended.
func (r *replayer) finish() error {
	if err := r.commit(); err != nil {
		return err
	}
	r.found.Rows = r.booked + r.books.queue.rows
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
	r.found.Interrupted = r.booked + r.books.queue.rows - r.found.Rows
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
