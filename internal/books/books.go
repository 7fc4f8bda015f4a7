// Package books records what every counted request used, from before it goes upstream until its row is in the store.
//
// The journal encloses a request. Admit is written before anything goes upstream, and End before the client sees the end of its answer;
// each is one append. Rows then move to the store in batches, and the journal is truncated behind them. Memory has only the last of them:
// rows that wait longer are read back from the journal. A killed process leaves its journal, and the next Open writes it to the store:
// requests that had ended exactly, others as interrupted, with the number of pieces that the client may have received. So a kill loses
// nothing and saves no usage, and while the store is slow or fails, only the journal grows.
//
// The journal is bounded. If it is full, all requests are refused until the store has taken rows, so nothing is served without a row. Only
// if the disk fails, requests of keys that are not strict are served: their rows stay in memory as long as there is room, and requests
// without a row are counted as lost.
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
	"sync/atomic"
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
	KeepRows     int              // [20,000] waiting rows that stay in memory, about 250 bytes each; others are read back from the journal
	MaxPending   int              // [200,000] requests that are open or whose rows are only in memory because the disk fails
	MaxBytes     int64            // [1 GiB] of journal, which is then full
	SegmentBytes int64            // [4 MiB] the size at which the next journal file starts
	RotateEvery  time.Duration    // [5 s] between checks for journal files that are no longer needed
	Held         *Journal         // [none] the journal of the same directory, if it is already locked; Close releases it
	// Later gets each row that Open leaves in the journal, and Begin is called before they begin to move: the store and Later have each row
	// once then. [none]
	Later func(*api.Record)
	Begin func() error
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.SyncEvery = orDefault(o.SyncEvery, 100*time.Millisecond)
	o.MoveEvery = orDefault(o.MoveEvery, 200*time.Millisecond)
	o.KeepRows = orDefault(o.KeepRows, 20_000)
	o.MaxPending = orDefault(o.MaxPending, 200_000)
	o.MaxBytes = orDefault(o.MaxBytes, 1<<30)
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
	pace    pace
	frame   []byte // encoding space
	closed  bool
	lost    int64 // requests that were served without a row
	found   Found
	// The current faults.
	writing, turning, syncing, reading, moving, counting, room, memory, ground fault

	crowded atomic.Bool // room or memory is a fault

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

// Open locks dataDir/journal for this process and moves what an earlier process left there into the store: all of it, or, if that is very
// much, a part before it returns and the rest while the service runs. It returns an error if another process holds the journal, if its
// directory cannot be written, or if the store fails; no row is lost then.
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
		reading:  fault{begun: "the journal cannot be read: rows wait in it; repair the disk", over: "the journal can be read again"},
		moving:   fault{begun: "the database accepts no rows: they wait in the journal", over: "the database accepts rows again"},
		counting: fault{begun: "the database accepts no counters of refusals: they wait in memory", over: "the database accepts counters again"},
		ground:   fault{begun: "DATA_DIR cannot be written", over: "DATA_DIR can be written again"},
		room:     fault{begun: "the journal is full: requests are refused until the database has taken rows; if the database works and this happens again, it is too slow for the load", over: "the journal has space again"},
		memory:   fault{begun: "no more rows fit into memory while the disk fails: strict keys are refused, and requests of other keys are not recorded", over: "rows are recorded again"},
	}
	b.pace.size = batchRows
	if err := b.start(ctx, dir); err != nil {
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

// start reads the journal of the last run and begins a new file.
func (b *Books) start(ctx context.Context, dir string) error {
	if err := b.replay(ctx, dir); err != nil {
		return err
	}
	if b.o.Begin != nil {
		if err := b.o.Begin(); err != nil {
			return err
		}
	}
	return b.journal.rotate(nil, b.o.Now())
}

// Admit journals that a request is about to go upstream. On an error the request must not go: CodeUnavailable if the journal is full or,
// for a strict key, if the disk fails; CodeStopping after Close. While the disk fails, a request of another key continues; its row is only
// in memory, or lost.
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
	switch err, fits := b.roomLocked(); {
	case fits:
	case err != nil || strict:
		return 0, cmp.Or(err, unwritten(b.diskErrLocked()))
	default:
		return 0, nil // its end may find space again, or is lost
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
	if _, known := b.open[r.ID]; !known {
		if err, fits := b.roomLocked(); !fits && err == nil {
			b.lost++
			b.tallies.add(minuteOf(b.o.Now()), r.Key, lostTally, 1)
			return 0, nil
		}
	}
	if b.enqueueLocked(r) {
		seq = b.journal.seq
	}
	b.forgetLocked(r.ID)
	return seq, nil
}

// enqueueLocked queues a row, and reports whether it is in the journal.
func (b *Books) enqueueLocked(r *api.Record) (written bool) {
	b.frame = appendEnd(b.frame[:0], r)
	var at *segment
	var to int64
	if b.appendLocked(b.frame) == nil {
		at = b.journal.current()
		to = at.size
	}
	if b.queue.add(b.frame, at, to, b.journal.seq) {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
	return at != nil
}

// lostTally is the name under which requests without a row are counted, by key and minute.
const lostTally = "unbooked"

// forgetLocked removes a request from the open ones and keeps its frame for reuse.
func (b *Books) forgetLocked(id string) {
	if a, ok := b.open[id]; ok {
		delete(b.open, id)
		if len(b.spare) < 1024 {
			b.spare = append(b.spare, a.frame)
		}
	}
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
// The journal keeps rows that have not moved for the next Open. That is an error only if the store fails. Closing again does nothing.
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
		b.enqueueLocked(&row)
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
	if b.moving.err == nil && b.reading.err == nil {
		b.log.Info("rows stay in the journal for the next start, because the database takes longer for them than a stop may", "rows", b.queue.rows)
		return nil
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
