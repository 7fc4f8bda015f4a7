package books

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// booked admits and ends requests, and does now and then what happens in the background.
func booked(t testing.TB, b *Books, ids ...string) {
	t.Helper()
	for i, id := range ids {
		mustAdmit(t, b, id)
		mustEnd(t, b, id)
		if i%100 == 99 {
			b.tidyJournal()
		}
	}
	b.tidyJournal()
}

// wantRows checks that the ledger has each of these requests as it was booked, and nothing else.
func wantRows(t testing.TB, l *ledger, ids ...string) {
	t.Helper()
	wantOutcomes(t, l, len(ids), 0)
	for _, id := range ids {
		if got, want := fmt.Sprintf("%+v %v", l.rows[id].Admission, *l.rows[id].OllamaEval), fmt.Sprintf("%+v %v", record(id).Admission, *record(id).OllamaEval); got != want {
			t.Fatalf("row %s, want %s", got, want)
		}
	}
}

// While the store fails, rows wait in the journal, and memory has only some of them. None is lost.
func TestRowsWaitInTheJournal(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	o := still
	o.KeepRows, o.MaxPending, o.SegmentBytes, o.RotateEvery = 2*chunkRows, 4*chunkRows, 200_000, 1
	b := openLedger(t, dir, &l, &logBuffer{}, o)
	mustAdmit(t, b, "long") // must not keep the files of others
	all := ids("a", 20*chunkRows)
	booked(t, b, all...)
	if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Flush: %v", err)
	}
	b.tidyJournal()
	if got, most := b.queue.kept, o.KeepRows+chunkRows; got > most {
		t.Errorf("%d rows are in memory, want at most %d", got, most)
	}
	memory := 0
	for _, c := range b.queue.chunks {
		memory += cap(c.frames)
	}
	if most := (o.KeepRows/chunkRows + 1) * 256 << 10; memory > most {
		t.Errorf("their frames take %d bytes, want at most %d", memory, most)
	}
	if d := b.Depth(); d.Waiting != len(all) || d.Lost != 0 || d.FullSince != nil {
		t.Errorf("depth %+v, want %d waiting rows", d, len(all))
	}
	crashed := t.TempDir()
	copyJournal(t, dir, crashed)

	more := ids("b", 700)
	l.setFail(nil)
	mustFlush(t, b)
	booked(t, b, more...)
	mustFlush(t, b)
	wantRows(t, &l, append(all, more...)...)
	for range 2 {
		b.tidyJournal()
	}
	one := int64(len(appendAdmit(nil, admission("long"))))
	if d := b.Depth(); d.Waiting != 0 || d.JournalBytes != one || len(segments(t, dir)) != 1 {
		t.Errorf("depth %+v with %d files, want only the open admission", d, len(segments(t, dir)))
	}

	var after ledger
	openLedger(t, crashed, &after, &logBuffer{}, still)
	wantOutcomes(t, &after, len(all), 1)
}

// A full journal refuses all requests until the store has made room, and says when that will be. Admitted requests can end.
func TestAFullJournalRefusesEverything(t *testing.T) {
	l := ledger{fail: errDown}
	now := noon
	add := func(ctx context.Context, rows []api.Record) (int, error) {
		now = now.Add(time.Duration(len(rows)) * 10 * time.Millisecond) // 100 rows a second
		return l.add(ctx, rows)
	}
	o := still
	o.Now = func() time.Time { return now }
	o.MaxBytes, o.SegmentBytes = 300_000, 15_000 // fewer than batchRows, so nothing moves by itself
	var log logBuffer
	b, err := open(t.Context(), t.TempDir(), add, l.count, log.logger(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abandon(b) })
	mustAdmit(t, b, "open")
	var all []string
	for b.Room() == nil && len(all) < batchRows-1 {
		id := fmt.Sprint("a", len(all))
		if err := b.Admit(admission(id), false); err != nil {
			break
		}
		mustEnd(t, b, id)
		if all = append(all, id); len(all)%50 == 0 {
			b.tidyJournal()
		}
	}
	b.tidyJournal()
	refused := func() *api.Error {
		t.Helper()
		wantCode(t, b.Room(), api.CodeUnavailable)
		wantCode(t, b.Admit(admission("strict"), true), api.CodeUnavailable)
		return wantCode(t, b.Admit(admission("d"), false), api.CodeUnavailable)
	}
	if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Flush: %v", err)
	}
	if e := refused(); e.RetryAfter != mostRetry {
		t.Errorf("RetryAfter %v while the database fails, want that of the next attempt, %v", e.RetryAfter, mostRetry)
	}
	mustEnd(t, b, "open")
	if d := b.Depth(); d.Lost != 0 || d.FullSince == nil || d.Waiting != len(all)+1 || d.JournalBytes > o.MaxBytes+2000 {
		t.Errorf("depth %+v, want %d waiting rows", d, len(all)+1)
	}
	// One batch shows the pace of the store.
	l.setFail(nil)
	chunks, rows := b.queue.take(chunkRows)
	records, err := b.read(chunks, rows)
	if err == nil {
		err = b.moveBatch(t.Context(), chunks, records, now)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.o.MaxBytes = b.journal.size - 100_000 // as if it had grown meanwhile
	e, promised := refused(), now
	b.pace.size = chunkRows / 10 // so that room is seen when it is made
	for b.Room() != nil {
		chunks, rows := b.queue.take(1)
		records, err := b.read(chunks, rows)
		if err == nil {
			err = b.moveBatch(t.Context(), chunks, records, now)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.tidyJournal()
	}
	// Whole chunks and whole files: each is about 5 s.
	if took := now.Sub(promised); e.RetryAfter > took+5*time.Second || took > e.RetryAfter+15*time.Second || e.RetryAfter < 2*time.Second {
		t.Errorf("RetryAfter %v, and there was room after %v", e.RetryAfter, took)
	}
	booked(t, b, "d")
	mustFlush(t, b)
	wantRows(t, &l, append(all, "open", "d")...)
	if d := b.Depth(); d.Lost != 0 || d.FullSince != nil || log.count("the journal is full") != 1 || log.count("the journal has space again") != 1 {
		t.Errorf("depth %+v, log %s", d, log.buf.String())
	}
}

// While the disk fails, rows wait in memory. If no more fit there, strict keys are refused, and other requests are served and counted as
// lost.
func TestMemoryIsBoundedWhileTheDiskFails(t *testing.T) {
	l := ledger{fail: errDown}
	var log logBuffer
	o := still
	o.MaxPending, o.MaxBytes = 24, 4000
	b := openLedger(t, t.TempDir(), &l, &log, o)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.journal.segments[0].file.Close()
	b.journal.segments[0].file = full
	all := ids("a", 24)
	for _, id := range all {
		if err := b.Admit(admission(id), false); err != nil {
			t.Fatal(err)
		}
	}
	mustEnd(t, b, all[:23]...)
	if err := b.Room(); err != nil {
		t.Errorf("all requests are refused: %v", err)
	}
	e := wantCode(t, b.Admit(admission("d"), true), api.CodeUnavailable)
	if !strings.Contains(e.Message, "on its disk") || e.RetryAfter == 0 {
		t.Errorf("%q, RetryAfter %v", e.Message, e.RetryAfter)
	}
	for _, id := range ids("lost", 100) {
		if err := b.Admit(admission(id), false); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, b, id)
	}
	mustEnd(t, b, all[23]) // an admitted request can always end
	if d := b.Depth(); d.Lost != 100 || d.FullSince == nil || d.Waiting != 24 {
		t.Errorf("depth %+v", d)
	}
	if n := log.count("no more rows fit into memory"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.buf.String())
	}
	dueAgain(b)
	b.tidyJournal() // to another file than the full one
	l.setFail(nil)
	mustFlush(t, b)
	mustAdmit(t, b, "d")
	wantOutcomes(t, &l, 24, 0)
	if d := b.Depth(); d.Lost != 100 || d.FullSince != nil || log.count("rows are recorded again\" \"lost since the start\"=100") != 1 {
		t.Errorf("depth %+v, log %s", d, log.buf.String())
	}
	counted := int64(0)
	for tally, n := range l.tallies {
		if tally.What == lostTally {
			counted += n
		}
	}
	if counted != 100 {
		t.Errorf("the store counts %d lost requests", counted)
	}
}

// Rows that are only in the journal were synced, so a failed fsync puts only those in memory in doubt.
func TestAFailedFsyncAfterRowsLeftMemory(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	o := still
	o.KeepRows = chunkRows
	b := openLedger(t, dir, &l, &logBuffer{}, o)
	all := ids("a", 4*chunkRows+100)
	booked(t, b, all[:4*chunkRows]...)
	reader, writer, err := os.Pipe() // accepts writes but no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	good := b.journal.segments[0].file
	b.journal.segments[0].file = writer
	b.journal.synced-- // as if more had been written
	b.tidyJournal()
	b.journal.segments[0].file = good
	booked(t, b, all[4*chunkRows:]...)
	if n := len(segments(t, dir)); n != 2 {
		t.Errorf("%d files, want the old one, for the rows that are only there, and the new one", n)
	}
	crashed := t.TempDir()
	copyJournal(t, dir, crashed)
	var after ledger
	openLedger(t, crashed, &after, &logBuffer{}, still)
	wantRows(t, &after, all...)
	l.setFail(nil)
	mustFlush(t, b)
	wantRows(t, &l, all...)
}

// A part of the journal that is damaged while rows wait in it costs only those rows. They are counted, and the file is kept.
func TestDamageWhileRowsWait(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	o := still
	o.KeepRows, o.SegmentBytes = 1, 100_000
	var log logBuffer
	b := openLedger(t, dir, &l, &log, o)
	all := ids("a", 3*chunkRows)
	booked(t, b, all...)
	path := segments(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pair := len(appendAdmit(nil, admission("a0000"))) + len(appendEnd(nil, record("a0000")))
	data[10*pair-1] ^= 1 // the end of the tenth
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); !errors.Is(err, errDown) {
		t.Fatalf("Flush: %v", err)
	}
	l.setFail(nil)
	mustFlush(t, b)
	b.tidyJournal()
	wantRows(t, &l, append(all[:9:9], all[10:]...)...)
	if d := b.Depth(); d.Lost != 1 || d.Waiting != 0 {
		t.Errorf("depth %+v, want one lost row; log %s", d, log.buf.String())
	}
	if kept, _ := os.ReadFile(strings.TrimSuffix(path, segmentSuffix) + damagedSuffix); len(kept) != len(data) {
		t.Errorf("the damaged file was not kept")
	}
}

// A file that cannot be read is reported and tried again.
func TestTheJournalCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	o := still
	o.KeepRows = 1
	b := openLedger(t, dir, &l, &logBuffer{}, o)
	all := ids("a", 2*chunkRows)
	booked(t, b, all...)
	path := segments(t, dir)[0]
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Flush: %v", err)
	}
	if d := b.Depth(); d.Waiting != len(all) || d.Lost != 0 || !strings.Contains(d.JournalError, "cannot be read") {
		t.Errorf("depth %+v", d)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, b)
	wantRows(t, &l, all...)
	if d := b.Depth(); d.JournalError != "" {
		t.Errorf("depth %+v", d)
	}
}

// Batches grow while rows wait, until the store needs half a second for one.
func TestBatchesGrowWithTheBacklog(t *testing.T) {
	for each, want := range map[time.Duration]int{
		time.Microsecond:       mostRows,
		200 * time.Microsecond: 4000,
		10 * time.Millisecond:  batchRows,
	} {
		now, largest := noon, 0
		add := func(_ context.Context, rows []api.Record) (int, error) {
			now = now.Add(time.Duration(len(rows)) * each)
			largest = max(largest, len(rows))
			return len(rows), nil
		}
		o := still
		o.Now = func() time.Time { return now }
		var l ledger
		b, err := open(t.Context(), t.TempDir(), add, l.count, (&logBuffer{}).logger(), o)
		if err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		for i := range 100 * chunkRows {
			b.enqueueLocked(record(fmt.Sprint(i)))
		}
		b.mu.Unlock()
		mustFlush(t, b)
		if largest != want || b.pace.size != want {
			t.Errorf("%v for each row: batches of up to %d rows, and the next one of %d, want %d", each, largest, b.pace.size, want)
		}
		abandon(b)
	}
}

// A stop does not wait for a long journal, and that is no failure.
func TestCloseWithALongJournal(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	batches := 0
	short, cut := context.WithCancel(t.Context())
	add := func(ctx context.Context, rows []api.Record) (int, error) {
		if batches++; batches > 1 {
			cut()
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return l.add(ctx, rows)
	}
	var log logBuffer
	b, err := open(t.Context(), dir, add, l.count, log.logger(), still)
	if err != nil {
		t.Fatal(err)
	}
	all := ids("a", 3*batchRows)
	booked(t, b, all...)
	if err := b.Close(short); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n := len(l.rows); n != batchRows || log.count("rows stay in the journal for the next start") != 1 || log.count("ERROR") != 0 {
		t.Errorf("%d rows in the store, want those of one batch; log %s", n, log.buf.String())
	}
	openLedger(t, dir, &l, &logBuffer{}, still)
	wantRows(t, &l, all...)
}

// BenchmarkFullJournal measures the memory, the start and the way to the store of a full journal.
func BenchmarkFullJournal(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		l := ledger{fail: errDown}
		books := openLedger(b, dir, &l, &logBuffer{}, Options{})
		r := record("0123456789abcdefghij")
		rows := 0
		for books.Room() == nil && books.Admit(&r.Admission, true) == nil {
			if err := books.End(r); err != nil {
				b.Fatal(err)
			}
			rows++
		}
		memory := func(name string) {
			text, err := os.ReadFile("/proc/self/status")
			if err != nil {
				b.Skip(err)
			}
			_, text, _ = bytes.Cut(text, []byte("VmHWM:"))
			var kib float64
			fmt.Sscan(string(text), &kib)
			b.ReportMetric(kib/1024, name)
		}
		memory("MiB-filled")
		abandon(books)
		begin := time.Now()
		discard := func(_ context.Context, rows []api.Record) (int, error) { return len(rows), nil }
		books, err := open(b.Context(), dir, discard, l.count, (&logBuffer{}).logger(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s-start")
		begin = time.Now()
		mustFlush(b, books)
		b.ReportMetric(float64(time.Since(begin).Nanoseconds())/float64(rows), "ns-read/row")
		b.ReportMetric(float64(rows), "rows")
		memory("MiB-moved")
		abandon(books)
	}
}

// Rows that may not be on the disk stay in memory, however many they are.
func TestRowsThatAreNotOnTheDiskStayInMemory(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0) // accepts no writes
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	reader, pipe, err := os.Pipe() // accepts no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer pipe.Close()
	for name, bad := range map[string]*os.File{"no write": full, "no fsync": pipe} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := ledger{fail: errDown}
			o := still
			o.KeepRows = 1
			b := openLedger(t, dir, &l, &logBuffer{}, o)
			all := ids("a", 3*chunkRows)
			end := func(ids []string) {
				for _, id := range ids {
					if err := b.Admit(admission(id), false); err != nil {
						t.Fatal(err)
					}
					mustEnd(t, b, id)
				}
			}
			good := b.journal.segments[0].file
			if bad == full {
				b.journal.segments[0].file = bad
			}
			end(all[:2*chunkRows+10])
			b.journal.segments[0].file = bad
			synced := b.journal.synced
			if bad == full {
				synced = b.journal.seq // of what could be written
			}
			b.queue.shrink(0, synced)
			b.tidyJournal()
			if got := b.queue.kept; got != 2*chunkRows+10 {
				t.Errorf("%d rows are in memory, want all %d", got, 2*chunkRows+10)
			}
			b.journal.segments[0].file = good
			dueAgain(b)
			b.tidyJournal()
			end(all[2*chunkRows+10:])
			b.tidyJournal()
			if got := b.queue.kept; got > chunkRows {
				t.Errorf("%d rows are in memory although the disk works, want at most %d", got, chunkRows)
			}
			l.setFail(nil)
			mustFlush(t, b)
			wantRows(t, &l, all...)
		})
	}
}
