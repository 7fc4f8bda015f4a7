package books

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
)

var errDown = errors.New("the database is down")

func TestRowsReachTheStore(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, filepath.Join(dir, "test.db"))
	var log logBuffer
	b, err := Open(t.Context(), dir, st, log.logger(), still)
	if err != nil {
		t.Fatal(err)
	}
	mustAdmit(t, b, "a", "b", "c")
	mustEnd(t, b, "a", "b")
	if d := b.Depth(); d.Waiting != 2 || d.Open != 1 || d.JournalBytes == 0 {
		t.Errorf("depth %+v", d)
	}
	mustFlush(t, b)
	all, err := st.AllStatistics(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	if got := all.Total; got.TotalRequests != 2 || got.PromptTokens != 52 || got.CompletionTokens != 596 || got.ByOutcome["ok"] != 2 {
		t.Errorf("stored %+v", got)
	}
	if d := b.Depth(); d.Waiting != 0 || d.Open != 1 {
		t.Errorf("depth after Flush %+v", d)
	}
	info, err := os.Stat(filepath.Join(dir, "journal"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("journal directory: %v, %v", info.Mode(), err)
	}
	info, err = os.Stat(segments(t, dir)[0])
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("journal file: %v, %v", info.Mode(), err)
	}

	if err := b.Close(t.Context()); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	all, err = st.AllStatistics(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	if c := all.ByKey["c"]; all.Total.TotalRequests != 3 || c.ByOutcome["interrupted"] != 1 || c.PromptTokens != 11 || c.EstimatedRows != 1 {
		t.Errorf("Close recorded the open request as %+v", c)
	}
	if left := segments(t, dir); len(left) != 0 {
		t.Errorf("Close left %v", left)
	}
	wantCode(t, b.Admit(admission("d"), true), api.CodeStopping)
	wantCode(t, b.End(record("c")), api.CodeStopping)
	wantCode(t, b.Flush(t.Context()), api.CodeStopping)
}

func TestBatchesMoveByThemselves(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		var log logBuffer
		b := openLedger(t, dir, &l, &log, Options{})
		mustAdmit(t, b, "open")
		mustAdmit(t, b, ids("a", 2700)...)
		mustEnd(t, b, ids("a", 1999)...)
		b.Tally("192.0.2.7", "unauthorized")
		if l.calls != 0 {
			t.Fatalf("%d batches before they were due", l.calls)
		}
		mustEnd(t, b, ids("a", 2000)[1999])
		synctest.Wait() // a full batch moves at once
		wantOutcomes(t, &l, 2000, 0)
		mustEnd(t, b, ids("a", 2700)[2000:]...)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		wantOutcomes(t, &l, 2700, 0)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(l.tallies) != 1 {
			t.Errorf("%d counters moved, want 1", len(l.tallies))
		}
		one := int64(len(appendAdmit(nil, admission("open"))))
		if d := b.Depth(); d.JournalBytes != one || len(segments(t, dir)) != 1 {
			t.Errorf("journal has %d bytes in %d files, want only the open admission (%d in 1)", d.JournalBytes, len(segments(t, dir)), one)
		}
	})
}

func TestStoreOutage(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := ledger{fail: errDown}
		var log logBuffer
		b := openLedger(t, dir, &l, &log, Options{})
		b.Refuse("oas_x", api.CodeRateLimited)
		mustAdmit(t, b, ids("a", 700)...)
		mustEnd(t, b, ids("a", 700)...)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// 1 + 2 + 4 + 8 + 16 s, then one attempt in 30 s.
		if l.calls < 20 || l.calls > 30 {
			t.Errorf("%d attempts in 10 minutes, want about 24", l.calls)
		}
		if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
			t.Errorf("Flush: %v", err)
		}
		d := b.Depth()
		if d.Waiting != 700 || d.StoreError != errDown.Error() || d.StoreErrorSince == nil {
			t.Errorf("depth %+v", d)
		}
		if n := log.count("the database accepts no rows"); n != 1 {
			t.Errorf("the outage was logged %d times", n)
		}
		l.setFail(nil)
		time.Sleep(mostRetry + 15*time.Second)
		synctest.Wait()
		wantOutcomes(t, &l, 700, 0)
		if d := b.Depth(); d.Waiting != 0 || d.StoreError != "" {
			t.Errorf("depth after the outage %+v", d)
		}
		if n := log.count("the database accepts rows again"); n != 1 {
			t.Errorf("its end was logged %d times", n)
		}
		if len(l.tallies) != 1 {
			t.Errorf("counters %v", l.tallies)
		}
		if len(segments(t, dir)) != 1 || b.Depth().JournalBytes != 0 {
			t.Errorf("the journal still contains %v, %d bytes", segments(t, dir), b.Depth().JournalBytes)
		}
	})
}

func TestCommitWhoseAnswerIsLost(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, filepath.Join(dir, "test.db"))
	lose := true
	add := func(ctx context.Context, rows []api.Record) (int, error) {
		n, err := st.AddRecords(ctx, rows)
		if lose && err == nil {
			lose = false
			return 0, errDown
		}
		return n, err
	}
	var log logBuffer
	b, err := open(t.Context(), dir, add, st.AddTallies, log.logger(), still)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abandon(b) })
	mustAdmit(t, b, ids("a", 20)...)
	mustEnd(t, b, ids("a", 20)...)
	if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Flush: %v", err)
	}
	mustFlush(t, b)
	wantTotal(t, st, 20)
}

// A batch that is retried counts as failed each time; its rows count once.
func TestBatchesAreCounted(t *testing.T) {
	l := ledger{fail: errDown}
	var log logBuffer
	b := openLedger(t, t.TempDir(), &l, &log, still)
	mustAdmit(t, b, "a", "b", "c")
	mustEnd(t, b, "a", "b")
	for range 2 {
		if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
			t.Fatal(err)
		}
	}
	if got := b.Batches(); got.Failed != 2 || got.Moved != 0 || got.Rows != 0 {
		t.Errorf("while the store fails: %+v", got)
	}
	l.setFail(nil)
	mustFlush(t, b)
	mustEnd(t, b, "c")
	mustFlush(t, b)
	if got := b.Batches(); got.Failed != 2 || got.Moved != 2 || got.Rows != 3 {
		t.Errorf("afterwards: %+v", got)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a")
	_, err := open(t.Context(), dir, l.add, l.count, log.logger(), still)
	if err == nil || !strings.Contains(err.Error(), "another ollama-api-service already uses DATA_DIR "+dir) {
		t.Fatalf("second Open: %v", err)
	}
	mustEnd(t, b, "a")
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, &l, 1, 0)
	openLedger(t, dir, &l, &log, still)
}

func TestCloseWithoutAStoreKeepsTheJournal(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a", "b")
	mustEnd(t, b, "a")
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := b.Close(ctx); err == nil || !strings.Contains(err.Error(), "2 rows stay in the journal") {
		t.Fatalf("Close: %v", err)
	}
	if _, err := open(t.Context(), dir, l.add, l.count, log.logger(), still); !errors.Is(err, errDown) {
		t.Fatalf("Open with a failing store: %v", err)
	}
	l.setFail(nil)
	openLedger(t, dir, &l, &log, still)
	wantOutcomes(t, &l, 1, 1)
}

// If the disk cannot be written, strict keys are refused. The rows of other keys wait in memory and are journalled later.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a", "b")
	b.Passed("b", 3)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	b.journal.segments[0].file.Close()
	b.journal.segments[0].file = full
	for range 3 {
		wantCode(t, b.Admit(admission("c"), true), api.CodeUnavailable)
	}
	mustEnd(t, b, "a")
	for _, id := range []string{"d", "e"} {
		if err := b.Admit(admission(id), false); err != nil {
			t.Fatal(err)
		}
	}
	mustEnd(t, b, "d")
	d := b.Depth()
	if got, want := fmt.Sprintln(d.Open, d.Waiting, d.JournalError != "", d.Unwritten > 0, d.Lost), "2 2 true true 0\n"; got != want {
		t.Errorf("depth %swant %s", got, want)
	}
	dueAgain(b)
	b.tidyJournal() // to another file than the full one
	mustAdmit(t, b, "c")
	if d := b.Depth(); d.JournalError != "" || d.Unwritten != 0 || log.count("the journal cannot be written") != 1 || log.count("can be written again") != 1 {
		t.Errorf("depth %+v, not logged once each: %s", d, log.buf.String())
	}
	abandon(b)
	l.setFail(nil)
	openLedger(t, dir, &l, &log, still)
	wantOutcomes(t, &l, 2, 3)
	if r := l.rows["b"]; r.CompletionTokens != 3 {
		t.Errorf("interrupted row %+v", r)
	}
}

// dueAgain makes the retry after a failure due.
func dueAgain(b *Books) {
	b.mu.Lock()
	b.journal.again = time.Time{}
	b.mu.Unlock()
}

// An fsync that succeeds after a failed one proves nothing about earlier writes, so everything is written again.
func TestAFailedFsyncIsNotForgotten(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a", "b")
	mustEnd(t, b, "a")
	reader, writer, err := os.Pipe() // accepts writes but no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	good := b.journal.segments[0].file
	b.journal.segments[0].file = writer
	for range 3 {
		b.tidyJournal()
	}
	if d := b.Depth(); d.JournalError == "" || log.count("cannot be synced") != 1 {
		t.Errorf("depth %+v, log %s", d, log.buf.String())
	}
	if n := len(segments(t, dir)); n != 1 {
		t.Errorf("%d segments while nothing can be synced", n)
	}
	b.journal.segments[0].file = good
	b.tidyJournal()
	left := segments(t, dir)
	if len(left) != 1 || !strings.HasSuffix(left[0], "2"+segmentSuffix) || b.Depth().JournalError != "" || log.count("can be synced again") != 1 {
		t.Errorf("segments %v, log %s", left, log.buf.String())
	}
	abandon(b)
	l.setFail(nil)
	openLedger(t, dir, &l, &log, still)
	wantOutcomes(t, &l, 1, 1)
}

// A stop reports rows that it can store nowhere.
func TestCloseOnAFullDisk(t *testing.T) {
	l := ledger{fail: errDown}
	b := openLedger(t, t.TempDir(), &l, &logBuffer{}, still)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.journal.segments[0].file.Close()
	b.journal.segments[0].file = full
	if err := b.Admit(admission("a"), false); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, b, "a")
	b.journal.dir += "/gone"
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := b.Close(ctx); err == nil || !strings.Contains(err.Error(), "of 1 rows that are not in the database") {
		t.Errorf("Close: %v", err)
	}
}

// TestPieceOfAFrame is about a write that stopped half-way and could not be undone: later frames must go to another file.
func TestPieceOfAFrame(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a", "b")
	if _, err := b.journal.segments[0].file.Write([]byte{9, 9, 9}); err != nil {
		t.Fatal(err)
	}
	b.journal.broken = true
	mustEnd(t, b, "a")
	mustAdmit(t, b, "c")
	if n := len(segments(t, dir)); n != 2 {
		t.Errorf("%d segments, want 2", n)
	}
	abandon(b)
	openLedger(t, dir, &l, &log, still)
	wantOutcomes(t, &l, 1, 2)
}

// TestWriteThatStopsHalfWay uses a pipe as the disk: it accepts a part of a long frame, and a part in a pipe cannot be truncated.
func TestWriteThatStopsHalfWay(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	if _, err := writer.Write(make([]byte, 60<<10)); err != nil { // a pipe holds 64 KiB
		t.Fatal(err)
	}
	if err := writer.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	good := b.journal.segments[0].file
	b.journal.segments[0].file = writer
	long := admission(strings.Repeat("x", maxText))
	long.Model, long.Alias, long.Endpoint, long.Backend, long.Class, long.ClientAddr = long.ID, long.ID, long.ID, long.ID, long.ID, long.ID
	wantCode(t, b.Admit(long, true), api.CodeUnavailable)
	b.journal.segments[0].file = good
	dueAgain(b)
	b.tidyJournal()
	mustEnd(t, b, "a")
	if left := segments(t, dir); len(left) != 1 || !strings.HasSuffix(left[0], "2"+segmentSuffix) {
		t.Errorf("segments %v, want a new one instead of the one with the partial frame", left)
	}
}

func TestSyncAlways(t *testing.T) {
	o := still
	o.SyncAlways = true
	b := openLedger(t, t.TempDir(), &ledger{}, &logBuffer{}, o)
	synced := func() bool { return b.journal.synced == b.journal.seq }
	if mustAdmit(t, b, "a"); !synced() {
		t.Error("Admit returned before its frame was on the disk")
	}
	if mustEnd(t, b, "a"); !synced() {
		t.Error("End returned before its frame was on the disk")
	}
	good := b.journal.segments[0].file
	reader, writer, err := os.Pipe() // accepts writes but no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	b.journal.segments[0].file = writer
	wantCode(t, b.Admit(admission("b"), true), api.CodeUnavailable)
	if d := b.Depth(); d.Open != 0 || d.JournalError == "" {
		t.Errorf("depth %+v", d)
	}
	b.journal.segments[0].file = good
	mustAdmit(t, b, "c")
	if d := b.Depth(); d.JournalError != "" {
		t.Errorf("depth %+v", d)
	}
}

func TestManyOpenAdmissionsAreNotCopiedAgainAndAgain(t *testing.T) {
	dir := t.TempDir()
	o := still
	o.SegmentBytes = 1000
	b := openLedger(t, dir, &ledger{}, &logBuffer{}, o)
	mustAdmit(t, b, ids("a", 100)...)
	for range 5 {
		b.tidyJournal()
	}
	if b.journal.last != 2 {
		t.Errorf("%d segments were started, want 2", b.journal.last)
	}
}

// TestPathDoesNotAllocate checks that Admit and End reuse buffers, because every request calls them.
func TestPathDoesNotAllocate(t *testing.T) {
	b := openLedger(t, t.TempDir(), &ledger{}, &logBuffer{}, still)
	r := record("a")
	allocs := testing.AllocsPerRun(2000, func() {
		if b.Admit(&r.Admission, true) != nil || b.End(r) != nil {
			t.Error("refused")
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations for each request", allocs)
	}
}

func TestRotationCarriesOpenAdmissions(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	var log logBuffer
	o := still
	o.SegmentBytes = 2000
	b := openLedger(t, dir, &l, &log, o)
	mustAdmit(t, b, "long", "lost")
	for round := range 5 {
		mustAdmit(t, b, ids(fmt.Sprint(round, "-"), 20)...)
		mustEnd(t, b, ids(fmt.Sprint(round, "-"), 20)...)
		if round == 3 {
			l.setFail(errDown) // keeps the segments of these rows
		} else if round < 3 {
			mustFlush(t, b)
		}
		b.tidyJournal()
	}
	if n := len(segments(t, dir)); n != 3 {
		t.Errorf("%d segments, want the current one and two with waiting rows", n)
	}
	mustEnd(t, b, "long")
	b.tidyJournal()

	crashed := t.TempDir()
	copyJournal(t, dir, crashed)
	after := ledger{rows: l.rows}
	openLedger(t, crashed, &after, &log, still)
	wantOutcomes(t, &after, 101, 1)
	r := after.rows["lost"]
	got := fmt.Sprintln(r.Outcome, r.PromptTokens, r.Estimated, r.Status, r.ErrorCode, r.Model, r.At)
	if want := fmt.Sprintln(api.OutcomeInterrupted, 11, true, 0, api.CodeInterrupted, "tiny:latest", noon); got != want {
		t.Errorf("interrupted row %swant %s", got, want)
	}
}

func TestHammer(t *testing.T) {
	for _, always := range []bool{false, true} {
		t.Run(fmt.Sprint("SyncAlways ", always), func(t *testing.T) {
			dir := t.TempDir()
			st := openStore(t, filepath.Join(dir, "test.db"))
			var log logBuffer
			o := Options{SyncEvery: time.Millisecond, MoveEvery: time.Millisecond, SegmentBytes: 5000, RotateEvery: time.Millisecond, SyncAlways: always}
			b, err := Open(t.Context(), dir, st, log.logger(), o)
			if err != nil {
				t.Fatal(err)
			}
			each := 200
			if always {
				each = 20
			}
			var all sync.WaitGroup
			for worker := range 8 {
				all.Go(func() {
					for _, id := range ids(fmt.Sprint(worker, "-"), each) {
						r := record(id)
						r.Key = fmt.Sprint("worker", worker)
						if err := b.Admit(&r.Admission, true); err != nil {
							t.Error(err)
						}
						b.Tally(r.Key, "metadata")
						b.Depth()
						if err := b.End(r); err != nil {
							t.Error(err)
						}
					}
					if err := b.Flush(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			wantTotal(t, st, 8*each)
			if err := b.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantTotal(t, st, 8*each)
			if left := segments(t, dir); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func BenchmarkAdmitEnd(b *testing.B) {
	var l ledger
	discard := func(context.Context, []api.Record) (int, error) { return 0, nil }
	books, err := open(b.Context(), b.TempDir(), discard, l.count, (&logBuffer{}).logger(), Options{MaxBytes: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer abandon(books)
	r := record("0123456789abcdefghij")
	b.ReportAllocs()
	for b.Loop() {
		if err := books.Admit(&r.Admission, true); err != nil {
			b.Fatal(err)
		}
		if err := books.End(r); err != nil {
			b.Fatal(err)
		}
	}
}
