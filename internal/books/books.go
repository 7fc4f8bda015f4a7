// Package books records what every counted request used, from before it goes upstream until its row is in the store.
//
// The journal encloses a request. Admit is written before anything goes upstream, and End before the client sees the end of its answer;
// each is one append. Rows then move to the store in batches, and the journal is truncated behind them. A killed process leaves its
// journal, and the next Open writes it to the store: requests that had ended exactly, others as interrupted, with the number of pieces
// that the client may have received. So a kill loses nothing and saves no usage, and during an outage of the store only the journal
// grows.
//
// The journal is bounded. If it is full, or the disk cannot be written, requests of strict keys are refused. Other requests are served:
// their rows stay in memory as long as there is room, and requests without a row are counted as lost.
package books

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

// Options are limits and intervals. A zero field means the default in brackets.
type Options struct {
	Now          func() time.Time // [time.Now]
	SyncEvery    time.Duration    // [100 ms] between fsyncs: the time that a power failure, but not a kill, may lose
	SyncAlways   bool             // fsync before Admit and End return
	MoveEvery    time.Duration    // [200 ms] between batches to the store
	MaxPending   int              // [200,000] requests that are open or not yet in the store, about 300 bytes of memory each
	MaxBytes     int64            // [128 MiB] of journal, which is then full
	SegmentBytes int64            // [4 MiB] the size at which the next journal file starts
	RotateEvery  time.Duration    // [5 s] between checks for journal files that are no longer needed
	Held         *Journal         // [none] the journal of the same directory, if it is already locked; Close releases it
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.SyncEvery = orDefault(o.SyncEvery, 100*time.Millisecond)
	o.MoveEvery = orDefault(o.MoveEvery, 200*time.Millisecond)
	o.MaxPending = orDefault(o.MaxPending, 200_000)
	o.MaxBytes = orDefault(o.MaxBytes, 128<<20)
	o.SegmentBytes = min(orDefault(o.SegmentBytes, 4<<20), o.MaxBytes/4)
	o.RotateEvery = orDefault(o.RotateEvery, 5*time.Second)
	return o
}

func orDefault[T int | int64 | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// retryAfter is the Retry-After for a request that cannot be recorded.
const retryAfter = 5 * time.Second

// Books are the journal and the rows that are not in the store yet. Admit and End may be called from any goroutine.
type Books struct {
	o    Options
	log  *slog.Logger
	lock *disk.Lock
	// The store's two methods, as fields so that a test can make the store fail.
	addRecords func(context.Context, []api.Record) (int, error)
	addTallies func(context.Context, []api.Tally) error

	// syncMu is held during an fsync; mu never is. Lock syncMu before mu.
	syncMu sync.Mutex

	mu      sync.Mutex
	journal journal
	open    map[string]admitted // not ended, by row ID
	spare   [][]byte            // frames of ended requests, for reuse
	queue   queue               // ended but not yet in the store
	batches Batches
	frame   []byte // encoding space
	closed  bool
	lost    int64 // requests that were served without a row
	found   Found
	// The current faults.
	writing, turning, syncing, moving, counting, room, ground fault

	tallies tallies

	flushes chan chan error
	full    chan struct{} // a full batch is waiting
	stop    context.CancelFunc
	stopped <-chan struct{}
	running sync.WaitGroup
}

// admitted is a request that has not ended.
type admitted struct {
	frame  []byte // its admission
	passed int64  // pieces of its answer that the client may have received
}

// Depth is how far the store lags behind, for /health.
type Depth struct {
	JournalBytes    int64      `json:"journal_bytes"`
	JournalMaxBytes int64      `json:"journal_max_bytes"`
	Waiting         int        `json:"rows_waiting"`      // ended but not yet in the store
	Open            int        `json:"requests_open"`     // admitted but not ended
	Unwritten       int        `json:"records_unwritten"` // only in memory: a kill would lose them
	Lost            int64      `json:"rows_lost"`         // since this start
	FullSince       *time.Time `json:"full_since,omitempty"`
	StoreError      string     `json:"store_error,omitempty"`
	StoreErrorSince *time.Time `json:"store_error_since,omitempty"`
	JournalError    string     `json:"journal_error,omitempty"`
	Hint            string     `json:"hint,omitempty"` // what the operator can do about the cause of an error
	Found           Found      `json:"found_at_start"`
}

// Open locks dataDir/journal for this process and moves what an earlier process left there into the store before it returns. It returns
// an error if another process holds the journal, if its directory cannot be written, or if the store fails; the journal then stays as it
// was.
func Open(ctx context.Context, dataDir string, st *store.Store, log *slog.Logger, o Options) (*Books, error) {
	return open(ctx, dataDir, st.AddRecords, st.AddTallies, log, o)
}

func open(ctx context.Context, dataDir string, addRecords func(context.Context, []api.Record) (int, error),
	addTallies func(context.Context, []api.Tally) error, log *slog.Logger, o Options,
) (*Books, error) {
	dir := journalDir(dataDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the journal's directory cannot be created: %w", err)
	}
	lock, err := o.lock(dir, dataDir)
	if err != nil {
		return nil, err
	}
	b := &Books{
		o: o.withDefaults(), log: log, lock: lock, addRecords: addRecords, addTallies: addTallies,
		open: make(map[string]admitted), flushes: make(chan chan error), full: make(chan struct{}, 1),
		writing:  fault{begun: "the journal cannot be written: strict keys are refused, and the rows of other keys are only in memory; free space on the disk or repair it", over: "the journal can be written again"},
		turning:  fault{begun: "no new journal file can be created, so the current one grows: free space on the disk or repair it", over: "journal files can be created again"},
		syncing:  fault{begun: "the journal cannot be synced: a power failure may lose requests until the disk is repaired", over: "the journal can be synced again"},
		moving:   fault{begun: "the database accepts no rows: they wait in the journal", over: "the database accepts rows again"},
		counting: fault{begun: "the database accepts no counters of refusals: they wait in memory", over: "the database accepts counters again"},
		ground:   fault{begun: "DATA_DIR cannot be written", over: "DATA_DIR can be written again"},
		room:     fault{begun: "the journal is full: strict keys are refused, and other requests are not recorded until the database accepts rows again", over: "the journal has space again"},
	}
	last, err := b.replay(ctx, dir)
	if err == nil {
		b.journal = journal{dir: dir, last: last}
		err = b.journal.rotate(nil, 0, 0, b.o.Now())
	}
	if err != nil {
		if o.Held == nil {
			lock.Release()
		}
		return nil, fmt.Errorf("the journal in %s: %w", dir, err)
	}
	run, stop := context.WithCancel(context.Background())
	b.stop, b.stopped = stop, run.Done()
	b.running.Go(func() { b.keepJournal(run) })
	b.running.Go(func() { b.keepStore(run) })
	return b, nil
}

// Admit journals that a request is about to go upstream. On an error the request must not go: CodeUnavailable for a strict key if the
// journal is full or the disk cannot be written, CodeStopping after Close. A request of another key continues; its row is only in memory,
// or lost.
func (b *Books) Admit(a *api.Admission, strict bool) error {
	b.mu.Lock()
	seq, err := b.admitLocked(a, strict)
	b.mu.Unlock()
	if err != nil || seq == 0 || !b.o.SyncAlways {
		return err
	}
	if err = b.sync(seq); err == nil || !strict {
		return nil
	}
	b.mu.Lock()
	b.forgetLocked(a.ID)
	b.mu.Unlock()
	return unwritten(err)
}

// admitLocked returns the frame to sync, or 0 if none was written.
func (b *Books) admitLocked(a *api.Admission, strict bool) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	if b.fullLocked() {
		if !strict {
			return 0, nil // its end may find space again, or is lost
		}
		full := api.Errorf(api.CodeUnavailable,
			"the journal is full, and requests of this key must be recorded (strict): try again when the gateway's database accepts rows again")
		full.Err, full.RetryAfter = b.moving.err, retryAfter
		return 0, full
	}
	b.frame = appendAdmit(b.frame[:0], a)
	if err = b.appendLocked(b.frame); err != nil && strict {
		return 0, unwritten(err)
	}
	var kept []byte
	if n := len(b.spare); n > 0 {
		kept, b.spare = b.spare[n-1], b.spare[:n-1]
	}
	b.open[a.ID] = admitted{frame: append(kept[:0], b.frame...)}
	if err != nil {
		return 0, nil
	}
	return b.journal.seq, nil
}

// Passed journals that n pieces of an answer are about to reach the client, in case the end is never written. To avoid an entry for each
// piece, it journals an eighth more, and returns the number up to which no further call is needed.
func (b *Books) Passed(id string, n int64) (ahead int64) {
	n += n / 8
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.open[id]
	if !ok || b.closed {
		return n
	}
	a.passed = n
	b.open[id] = a
	b.frame = appendPassed(b.frame[:0], id, n)
	_ = b.appendLocked(b.frame) // it is in memory, and a failure is reported
	return n
}

// End journals how a request ended and queues its row for the store. The end of the answer must wait for it. If the disk cannot be
// written, the row is still queued. After Close it returns CodeStopping, because Close recorded the request as interrupted.
func (b *Books) End(r *api.Record) error {
	b.mu.Lock()
	seq, err := b.endLocked(r)
	b.mu.Unlock()
	if b.o.SyncAlways && seq > 0 {
		_ = b.sync(seq) // a failure is reported, and the row is in memory
	}
	return err
}

func (b *Books) endLocked(r *api.Record) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	if _, known := b.open[r.ID]; !known && b.fullLocked() {
		b.lost++
		b.tallies.add(minuteOf(b.o.Now()), r.Key, lostTally, 1)
		return 0, nil
	}
	b.frame = appendEnd(b.frame[:0], r)
	if b.appendLocked(b.frame) == nil {
		seq = b.journal.seq
	}
	b.forgetLocked(r.ID)
	if b.queue.add(b.frame) {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
	return seq, nil
}

// lostTally is the name under which requests without a row are counted, by key and minute.
const lostTally = "unbooked"

// fullLocked reports whether a limit is reached. Once it is, it stays so until an eighth is free again, to avoid flapping.
func (b *Books) fullLocked() bool {
	rows, bytes := b.queue.rows+len(b.open), b.journal.bytes()
	if b.room.err != nil {
		rows, bytes = rows+b.o.MaxPending/8, bytes+b.o.MaxBytes/8
	}
	full := rows >= b.o.MaxPending || bytes >= b.o.MaxBytes
	switch {
	case full && b.room.err == nil:
		b.room.set(b, cmp.Or(b.moving.err, errFull))
	case !full && b.room.err != nil:
		b.room.set(b, nil, "lost since the start", b.lost)
	}
	return full
}

var errFull = errors.New("rows arrive faster than the database accepts them")

// forgetLocked removes a request from the open ones and keeps its frame for reuse.
func (b *Books) forgetLocked(id string) {
	if a, ok := b.open[id]; ok {
		delete(b.open, id)
		if len(b.spare) < 1024 {
			b.spare = append(b.spare, a.frame)
		}
	}
}

func unwritten(err error) error {
	e := api.Wrap(api.CodeUnavailable, err, "the gateway cannot record this request on its disk; try again later")
	e.RetryAfter = retryAfter
	return e
}

func errStopping() error {
	return api.Errorf(api.CodeStopping, "the gateway is stopping; try again in a moment")
}

// Refuse counts a refused request under its code. It is Tally with a Code.
func (b *Books) Refuse(who string, code api.Code) { b.Tally(who, string(code)) }

// Tally counts a request without a row, by the minute. Counts stay in memory for up to ten seconds, so a kill loses them, unlike rows.
func (b *Books) Tally(who, what string) {
	b.tallies.add(minuteOf(b.o.Now()), who, what, 1)
}

// Depth returns how much is waiting.
func (b *Books) Depth() Depth {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := Depth{
		JournalBytes: b.journal.bytes(), JournalMaxBytes: b.o.MaxBytes, Waiting: b.queue.rows, Open: len(b.open),
		Unwritten: b.journal.missing, Lost: b.lost, Found: b.found,
	}
	if b.room.err != nil {
		since := b.room.since
		d.FullSince = &since
	}
	if b.moving.err != nil {
		since := b.moving.since
		d.StoreError, d.StoreErrorSince = b.moving.err.Error(), &since
	}
	journalErr := cmp.Or(b.writing.err, b.syncing.err, b.turning.err, b.ground.err)
	if journalErr != nil {
		d.JournalError = journalErr.Error()
	}
	if cause, ok := disk.Cause(cmp.Or(journalErr, b.moving.err)); ok {
		d.Hint = cause.Hint
	}
	return d
}

// fault is one kind of failure. It is logged once when it begins and once when it ends. Books.mu guards it.
type fault struct {
	begun, over string
	err         error
	since       time.Time
}

func (f *fault) set(b *Books, err error, also ...any) {
	switch {
	case err != nil && f.err == nil:
		f.since = b.o.Now()
		attrs := []any{"cause", err}
		if cause, ok := disk.Cause(err); ok {
			attrs = append(attrs, "hint", cause.Hint)
		}
		b.log.Error(f.begun, attrs...)
	case err == nil && f.err != nil:
		b.log.Info(f.over, append(also, "after", b.o.Now().Sub(f.since).Round(time.Second).String())...)
	}
	f.err = err
}

// Flush returns when everything that ended before the call is in the store, including tallies. It tries at once and returns the store's
// error if that fails; the rows then stay queued.
func (b *Books) Flush(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case b.flushes <- reply:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.stopped:
		return errStopping()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close records open requests as interrupted, moves everything into the store, retrying until ctx is done, and leaves the journal empty.
// On an error, the journal keeps the rows for the next Open. Closing again does nothing.
func (b *Books) Close(ctx context.Context) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	left := make([]api.Record, 0, len(b.open))
	for _, a := range b.open {
		_, r, err := decode(a.frame[frameHead:])
		if err != nil {
			panic("books: an open admission cannot be read: " + err.Error()) // this process wrote it into its own memory
		}
		r.CompletionTokens = a.passed
		left = append(left, r)
	}
	for _, row := range interruptedRecords(left, b.o.Now()) {
		b.frame = appendEnd(b.frame[:0], &row)
		b.queue.add(b.frame)
	}
	b.mu.Unlock()

	err := b.drain(ctx)
	b.stop()
	b.running.Wait()
	saved := b.saveLeft(err)
	syncErr := b.sync(math.MaxInt64)
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(saved, syncErr, b.journal.close(err == nil), b.lock.Release())
}

// saveLeft makes sure that rows that are not in the store are in the journal, and reports what happens to them.
func (b *Books) saveLeft(err error) error {
	if err == nil {
		return nil
	}
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.journal.missing > 0 {
		if diskErr := b.rewriteLocked(); diskErr != nil {
			return fmt.Errorf("of %d rows that are not in the database, up to %d are lost, because the journal cannot be written either: %w", b.queue.rows, b.journal.missing, errors.Join(err, diskErr))
		}
	}
	return fmt.Errorf("%d rows stay in the journal for the next start: %w", b.queue.rows, err)
}

// drain calls Flush until it succeeds or ctx is done.
func (b *Books) drain(ctx context.Context) error {
	for {
		err := b.Flush(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(firstRetry):
		case <-ctx.Done():
			return err
		}
	}
}
