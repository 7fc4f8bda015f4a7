// Package usage keeps the books: what every counted request used, from before it goes upstream until its row is in the store.
//
// The journal brackets a request. Admit is written before anything goes upstream, End before the client sees the end of its
// answer; an append each. Rows then move to the store in batches, and the journal is cut behind them. A killed process
// leaves the journal, and the next Open books it: what had ended exactly, what had not as interrupted. So a kill -9 loses
// nothing and buys nothing, and an outage of the store only lets the journal grow.
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
	"ollama-api-service/internal/store"
)

// Options are the bounds and paces of the books. A zero field takes the default in brackets.
type Options struct {
	Now          func() time.Time // [time.Now]
	SyncEvery    time.Duration    // [100 ms] between fsyncs: what a power cut, not a kill, may lose
	SyncAlways   bool             // fsync before Admit and End return
	MoveEvery    time.Duration    // [200 ms] between batches to the store
	MaxPending   int              // [200,000] requests open or not yet in the store, about 300 bytes of memory each
	SegmentBytes int64            // [4 MiB] journal file size at which the next is begun
	RotateEvery  time.Duration    // [5 s] between looks whether what was committed can be cut from the journal
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.SyncEvery = orDefault(o.SyncEvery, 100*time.Millisecond)
	o.MoveEvery = orDefault(o.MoveEvery, 200*time.Millisecond)
	o.MaxPending = orDefault(o.MaxPending, 200_000)
	o.SegmentBytes = orDefault(o.SegmentBytes, 4<<20)
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
	lock *os.File
	// The store's two methods, as fields so that a test can let the store fail.
	addRecords func(context.Context, []api.Record) (int, error)
	addTallies func(context.Context, []api.Tally) error

	// syncMu is held through an fsync; mu never is. Order: syncMu, then mu.
	syncMu sync.Mutex

	mu      sync.Mutex
	journal journal
	open    map[string][]byte // admitted and not ended: the frame, by row id
	spare   [][]byte          // frames of ended requests, for reuse
	queue   queue             // ended and not yet in the store
	batches Batches
	frame   []byte // encoding space
	closed  bool
	// What fails at present.
	writing, syncing, moving, counting fault

	tallies tallies

	flushes chan chan error
	full    chan struct{} // a whole batch waits
	stop    context.CancelFunc
	stopped <-chan struct{}
	running sync.WaitGroup
}

// Depth is how far the store lags behind, for /health.
type Depth struct {
	JournalBytes    int64      `json:"journal_bytes"`
	Waiting         int        `json:"rows_waiting"`  // ended and not yet in the store
	Open            int        `json:"requests_open"` // admitted and not ended
	StoreError      string     `json:"store_error,omitempty"`
	StoreErrorSince *time.Time `json:"store_error_since,omitempty"`
	JournalError    string     `json:"journal_error,omitempty"`
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
	lock, err := lockDir(dir, dataDir)
	if err != nil {
		return nil, err
	}
	b := &Books{
		o: o.withDefaults(), log: log, lock: lock, addRecords: addRecords, addTallies: addTallies,
		open: make(map[string][]byte), flushes: make(chan chan error), full: make(chan struct{}, 1),
		writing:  fault{begun: "the journal cannot be written, so nothing is served: free space on the disk or mend it", over: "the journal is written again"},
		syncing:  fault{begun: "the journal cannot be synced: a power cut may lose requests until the disk is mended", over: "the journal is synced again"},
		moving:   fault{begun: "the database takes no rows: they wait in the journal", over: "the database takes rows again"},
		counting: fault{begun: "the database takes no counters of refusals: they wait in memory", over: "the database takes counters again"},
	}
	last, err := b.replay(ctx, dir)
	if err == nil {
		b.journal = journal{dir: dir, last: last}
		err = b.journal.rotate(nil, 0, b.o.Now())
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("the journal in %s: %w", dir, err)
	}
	run, stop := context.WithCancel(context.Background())
	b.stop, b.stopped = stop, run.Done()
	b.running.Go(func() { b.keepJournal(run) })
	b.running.Go(func() { b.keepStore(run) })
	return b, nil
}

// Admit journals that a request is about to go upstream. Without it the request must not go. It returns a CodeUnavailable
// error when the books are full or the disk takes nothing, and CodeStopping after Close.
func (b *Books) Admit(a *api.Admission) error {
	b.mu.Lock()
	seq, err := b.admitLocked(a)
	b.mu.Unlock()
	if err == nil && b.o.SyncAlways {
		if err = b.sync(seq); err != nil {
			b.mu.Lock()
			b.forgetLocked(a.ID)
			b.mu.Unlock()
			err = unwritten(err)
		}
	}
	return err
}

func (b *Books) admitLocked(a *api.Admission) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	if b.queue.rows+len(b.open) >= b.o.MaxPending {
		full := api.Errorf(api.CodeUnavailable,
			"the books are full, so nothing is served until the gateway's database takes rows again; try later")
		full.Err, full.RetryAfter = b.moving.err, retryAfter
		return 0, full
	}
	b.frame = appendAdmit(b.frame[:0], a)
	if err := b.appendLocked(b.frame); err != nil {
		return 0, unwritten(err)
	}
	var kept []byte
	if n := len(b.spare); n > 0 {
		kept, b.spare = b.spare[n-1], b.spare[:n-1]
	}
	b.open[a.ID] = append(kept[:0], b.frame...)
	return b.journal.seq, nil
}

// End journals how a request ended and queues its row for the store. The end of the answer must wait for it. On an error
// (CodeUnavailable) the row is still queued, and is lost only if this process is killed before it moved: then the
// admission is booked as interrupted. After Close it returns CodeStopping: Close booked the request as interrupted.
func (b *Books) End(r *api.Record) error {
	b.mu.Lock()
	seq, err := b.endLocked(r)
	b.mu.Unlock()
	if err == nil && b.o.SyncAlways {
		if err = b.sync(seq); err != nil {
			err = unwritten(err)
		}
	}
	return err
}

func (b *Books) endLocked(r *api.Record) (seq int64, err error) {
	if b.closed {
		return 0, errStopping()
	}
	b.frame = appendEnd(b.frame[:0], r)
	if err = b.appendLocked(b.frame); err != nil {
		err = unwritten(err)
	}
	b.forgetLocked(r.ID)
	if b.queue.add(b.frame) {
		select {
		case b.full <- struct{}{}:
		default:
		}
	}
	return b.journal.seq, err
}

// forgetLocked takes a request out of the open ones and keeps its frame for the next.
func (b *Books) forgetLocked(id string) {
	if frame, ok := b.open[id]; ok {
		delete(b.open, id)
		if len(b.spare) < 1024 {
			b.spare = append(b.spare, frame)
		}
	}
}

// appendLocked writes one frame. After a write that could not be undone it first begins a new segment, because what stands
// behind a broken frame would not be read.
func (b *Books) appendLocked(frame []byte) error {
	var err error
	if b.journal.broken {
		err = b.rotateLocked()
	}
	if err == nil {
		err = b.journal.append(frame)
	}
	b.writing.set(b, err)
	return err
}

func (b *Books) rotateLocked() error {
	return b.journal.rotate(b.open, b.queue.ended, b.o.Now())
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
	d := Depth{JournalBytes: b.journal.bytes(), Waiting: b.queue.rows, Open: len(b.open)}
	if b.moving.err != nil {
		since := b.moving.since
		d.StoreError, d.StoreErrorSince = b.moving.err.Error(), &since
	}
	if err := cmp.Or(b.writing.err, b.syncing.err); err != nil {
		d.JournalError = err.Error()
	}
	return d
}

// fault is one thing that fails or does not: logged once when it begins and once when it is over. Books.mu guards it.
type fault struct {
	begun, over string
	err         error
	since       time.Time
}

func (f *fault) set(b *Books, err error) {
	switch {
	case err != nil && f.err == nil:
		f.since = b.o.Now()
		b.log.Error(f.begun, "error", err)
	case err == nil && f.err != nil:
		b.log.Info(f.over, "after", b.o.Now().Sub(f.since).Round(time.Second).String())
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
	for _, frame := range b.open {
		_, admitted, err := decode(frame[frameHead:])
		if err != nil {
			panic("usage: an open admission cannot be read: " + err.Error()) // this process wrote it into its own memory
		}
		row := interruptedRecord(admitted.Admission)
		b.frame = appendEnd(b.frame[:0], &row)
		b.queue.add(b.frame)
	}
	b.mu.Unlock()

	err := b.drain(ctx)
	b.stop()
	b.running.Wait()
	syncErr := b.sync(math.MaxInt64)
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%d rows stay in the journal for the next start: %w", b.queue.rows, err)
	}
	return errors.Join(err, syncErr, b.journal.close(err == nil), b.lock.Close())
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
