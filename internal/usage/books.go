// Package usage keeps the books: what every counted request used, from before it goes upstream until its row is in the store.
//
// The journal brackets a request. Admit is written before anything goes upstream, End before the client sees the end of its
// answer; an append each. Rows then move to the store in batches, and the journal is cut behind them. A killed process
// leaves the journal, and the next Open books it: what had ended exactly, what had not as interrupted, with the pieces of the
// answer that had passed. So a kill -9 loses nothing and buys nothing, and an outage of the store only lets the journal grow.
//
// The books are bounded. Where they are full, or the disk takes nothing, keys that are strict are refused; the rest is served,
// its rows in memory as long as there is room, and what then has no row is counted as lost.
package usage

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

// Options are the bounds and paces of the books. A zero field takes the default in brackets.
type Options struct {
	Now          func() time.Time // [time.Now]
	SyncEvery    time.Duration    // [100 ms] between fsyncs: what a power cut, not a kill, may lose
	SyncAlways   bool             // fsync before Admit and End return
	MoveEvery    time.Duration    // [200 ms] between batches to the store
	MaxPending   int              // [200,000] requests open or not yet in the store, about 300 bytes of memory each
	MaxBytes     int64            // [128 MiB] of journal: with more, the books are full
	SegmentBytes int64            // [4 MiB] journal file size at which the next is begun
	RotateEvery  time.Duration    // [5 s] between looks whether what was committed can be cut from the journal
	Held         *Journal         // [none] the journal of the same directory, if it is held already; Close releases it
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

// retryAfter is what a client is told when the books cannot take its request.
const retryAfter = 5 * time.Second

// Books are the journal and what is on its way from there to the store. Admit and End may be called from everywhere.
type Books struct {
	o    Options
	log  *slog.Logger
	lock *disk.Lock
	// The store's two methods, as fields so that a test can let the store fail.
	addRecords func(context.Context, []api.Record) (int, error)
	addTallies func(context.Context, []api.Tally) error

	// syncMu is held through an fsync; mu never is. Order: syncMu, then mu.
	syncMu sync.Mutex

	mu      sync.Mutex
	journal journal
	open    map[string]admitted // not ended, by row id
	spare   [][]byte            // frames of ended requests, for reuse
	queue   queue               // ended and not yet in the store
	batches Batches
	frame   []byte // encoding space
	closed  bool
	lost    int64 // requests served without a row
	found   Found
	// What fails at present.
	writing, turning, syncing, moving, counting, room, ground fault

	tallies tallies

	flushes chan chan error
	full    chan struct{} // a whole batch waits
	stop    context.CancelFunc
	stopped <-chan struct{}
	running sync.WaitGroup
}

// admitted is a request that has not ended.
type admitted struct {
	frame  []byte // its admission
	passed int64  // pieces of its answer that may have reached the client
}

// Depth is how far the store lags behind, for /health.
type Depth struct {
	JournalBytes    int64      `json:"journal_bytes"`
	JournalMaxBytes int64      `json:"journal_max_bytes"`
	Waiting         int        `json:"rows_waiting"`      // ended and not yet in the store
	Open            int        `json:"requests_open"`     // admitted and not ended
	Unwritten       int        `json:"records_unwritten"` // in memory alone: a kill would take them along
	Lost            int64      `json:"rows_lost"`         // since this start
	FullSince       *time.Time `json:"full_since,omitempty"`
	StoreError      string     `json:"store_error,omitempty"`
	StoreErrorSince *time.Time `json:"store_error_since,omitempty"`
	JournalError    string     `json:"journal_error,omitempty"`
	Hint            string     `json:"hint,omitempty"` // what the operator can do about the cause of an error
	Found           Found      `json:"found_at_start"`
}

// Open takes dataDir/journal for this process, moves what an earlier one left there into the store, and only then returns.
// It returns an error when another process holds the journal, when its directory cannot be written, and when the store does
// not take the rows; the journal then stays as it was.
func Open(ctx context.Context, dataDir string, st *store.Store, log *slog.Logger, o Options) (*Books, error) {
	return open(ctx, dataDir, st.AddRecords, st.AddTallies, log, o)
}

func open(ctx context.Context, dataDir string, addRecords func(context.Context, []api.Record) (int, error),
	addTallies func(context.Context, []api.Tally) error, log *slog.Logger, o Options,
) (*Books, error) {
	dir := journalDir(dataDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the journal's directory cannot be made: %w", err)
	}
	lock, err := o.lock(dir, dataDir)
	if err != nil {
		return nil, err
	}
	b := &Books{
		o: o.withDefaults(), log: log, lock: lock, addRecords: addRecords, addTallies: addTallies,
		open: make(map[string]admitted), flushes: make(chan chan error), full: make(chan struct{}, 1),
		writing:  fault{begun: "the journal cannot be written: strict keys are refused, and the rows of others are in memory alone; free space on the disk or mend it", over: "the journal is written again"},
		turning:  fault{begun: "no new journal file can be begun, so the present one grows: free space on the disk or mend it", over: "journal files are begun again"},
		syncing:  fault{begun: "the journal cannot be synced: a power cut may lose requests until the disk is mended", over: "the journal is synced again"},
		moving:   fault{begun: "the database takes no rows: they wait in the journal", over: "the database takes rows again"},
		counting: fault{begun: "the database takes no counters of refusals: they wait in memory", over: "the database takes counters again"},
		ground:   fault{begun: "nothing can be written to DATA_DIR", over: "DATA_DIR can be written to again"},
		room:     fault{begun: "the books are full: strict keys are refused, and others are served without a row until the database takes rows again", over: "the books have room again"},
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

// Admit journals that a request is about to go upstream. On an error it must not go: CodeUnavailable for one of a strict key
// when the books are full or the disk takes nothing, CodeStopping after Close. One of another key goes on then; its row is in
// memory alone, or lost.
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

// admitLocked returns the frame to sync, or 0 where none was written.
func (b *Books) admitLocked(a *api.Admission, strict bool) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	if b.fullLocked() {
		if !strict {
			return 0, nil // its end finds room again, or is lost
		}
		full := api.Errorf(api.CodeUnavailable,
			"the books are full, and this key is served with a row alone (strict): try again when the gateway's database takes rows again")
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

// Passed journals that n pieces of an answer are about to have reached the client, in case that the end is never written. To keep
// the journal short of a line for each, it runs ahead by an eighth; it returns up to where nothing needs to be said.
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
	_ = b.appendLocked(b.frame) // memory has it, and what fails is told of
	return n
}

// End journals how a request ended and queues its row for the store. The end of the answer must wait for it. Where the disk
// takes nothing the row is queued all the same. After Close it returns CodeStopping: Close booked the request as interrupted.
func (b *Books) End(r *api.Record) error {
	b.mu.Lock()
	seq, err := b.endLocked(r)
	b.mu.Unlock()
	if b.o.SyncAlways && seq > 0 {
		_ = b.sync(seq) // what fails is told of, and the row is in memory
	}
	return err
}

func (b *Books) endLocked(r *api.Record) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	if _, admitted := b.open[r.ID]; !admitted && b.fullLocked() {
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

// lostTally is under what name requests without a row are counted, by key and minute.
const lostTally = "unbooked"

// fullLocked says whether the books are at a bound. Once they are, they are until an eighth is free again, so that they do not
// flutter.
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

var errFull = errors.New("rows come faster than the database takes them")

// forgetLocked takes a request out of the open ones and keeps its frame for the next.
func (b *Books) forgetLocked(id string) {
	if a, ok := b.open[id]; ok {
		delete(b.open, id)
		if len(b.spare) < 1024 {
			b.spare = append(b.spare, a.frame)
		}
	}
}

func unwritten(err error) error {
	e := api.Wrap(api.CodeUnavailable, err, "the gateway's disk does not take the record of this request; try later")
	e.RetryAfter = retryAfter
	return e
}

func errStopping() error {
	return api.Errorf(api.CodeStopping, "the gateway is stopping; try again in a moment")
}

// Refuse counts a refused request under its code. It is Tally with a Code.
func (b *Books) Refuse(who string, code api.Code) { b.Tally(who, string(code)) }

// Tally counts what makes no row, per minute. Counts are in memory for up to ten seconds: unlike rows, a kill loses them.
func (b *Books) Tally(who, what string) {
	b.tallies.add(minuteOf(b.o.Now()), who, what, 1)
}

// Depth tells how much waits.
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
	journal := cmp.Or(b.writing.err, b.syncing.err, b.turning.err, b.ground.err)
	if journal != nil {
		d.JournalError = journal.Error()
	}
	if cause, ok := disk.Cause(cmp.Or(journal, b.moving.err)); ok {
		d.Hint = cause.Hint
	}
	return d
}

// fault is one thing that fails or does not: logged once when it begins and once when it is over. Books.mu guards it.
type fault struct {
	begun, over string
	err         error
	since       time.Time
}

func (f *fault) set(b *Books, err error, also ...any) {
	switch {
	case err != nil && f.err == nil:
		f.since = b.o.Now()
		attrs := []any{"error", err}
		if cause, ok := disk.Cause(err); ok {
			attrs = append(attrs, "hint", cause.Hint)
		}
		b.log.Error(f.begun, attrs...)
	case err == nil && f.err != nil:
		b.log.Info(f.over, append(also, "after", b.o.Now().Sub(f.since).Round(time.Second).String())...)
	}
	f.err = err
}

// Flush returns when everything that ended before the call is in the store, tallies included. It tries at once and returns
// the store's error if that fails; what waits stays in the books.
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

// Close books what is still open as interrupted, drains everything into the store, trying again until ctx is done, and
// leaves the journal empty. On an error the journal keeps the rows for the next Open. Closing again does nothing.
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
			panic("usage: an open admission cannot be read: " + err.Error()) // this process wrote it into its own memory
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

// saveLeft sees to it that what the store did not take is in the journal, and says what becomes of it.
func (b *Books) saveLeft(err error) error {
	if err == nil {
		return nil
	}
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.journal.missing > 0 {
		if disk := b.rewriteLocked(); disk != nil {
			return fmt.Errorf("of %d rows that are not in the database, %d or fewer are lost, for the journal takes nothing either: %w", b.queue.rows, b.journal.missing, errors.Join(err, disk))
		}
	}
	return fmt.Errorf("%d rows stay in the journal for the next start: %w", b.queue.rows, err)
}

// drain flushes until that succeeds or ctx is done.
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
