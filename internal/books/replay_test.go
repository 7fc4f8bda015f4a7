package books

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

func wantTotal(t testing.TB, st *store.Store, n int) {
	t.Helper()
	all, err := st.AllStatistics(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	if all.Total.TotalRequests != int64(n) {
		t.Fatalf("%d rows in the store, want %d", all.Total.TotalRequests, n)
	}
}

// writeJournal writes a journal as a killed process leaves it: a, b and c are admitted, a and b have ended.
func writeJournal(t testing.TB, dir string) (path string, data []byte) {
	t.Helper()
	var l ledger
	b := openLedger(t, dir, &l, &logBuffer{}, still)
	mustAdmit(t, b, "a", "b", "c")
	mustEnd(t, b, "a", "b")
	abandon(b)
	path = segments(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, data
}

func TestTornTailAtEveryByte(t *testing.T) {
	path, data := writeJournal(t, t.TempDir())
	last := len(appendEnd(nil, record("b")))
	for cut := 1; cut <= last; cut++ {
		dir := t.TempDir()
		file := filepath.Join(dir, "journal", filepath.Base(path))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data[:len(data)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		var l ledger
		var log logBuffer
		b := openLedger(t, dir, &l, &log, still)
		wantOutcomes(t, &l, 1, 2)
		reported := log.count(fmt.Sprintf(`"bytes dropped"=%d`, last-cut))
		if cut < last && reported != 1 || cut == last && log.count("dropped") != 0 {
			t.Fatalf("without the last %d bytes: %s", cut, log.buf.String())
		}
		abandon(b)
		if kept, _ := filepath.Glob(filepath.Join(dir, "journal", "*"+damagedSuffix)); len(kept) != 0 {
			t.Fatalf("without the last %d bytes: a torn end was kept as damage", cut)
		}
	}
}

func TestUnwrittenTail(t *testing.T) {
	for name, tail := range map[string][]byte{
		"zeros":        make([]byte, 4096),
		"wrong last":   append(appendEnd(nil, record("c"))[:40], make([]byte, len(appendEnd(nil, record("c")))-40)...),
		"part of head": {1, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, data := writeJournal(t, dir)
			if err := os.WriteFile(path, append(data, tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			var l ledger
			var log logBuffer
			openLedger(t, dir, &l, &log, still)
			wantOutcomes(t, &l, 2, 1)
			if log.count(fmt.Sprintf(`"bytes dropped"=%d`, len(tail))) != 1 {
				t.Errorf("log: %s", log.buf.String())
			}
			if kept, _ := filepath.Glob(filepath.Join(dir, "journal", "*"+damagedSuffix)); len(kept) != 0 {
				t.Errorf("a torn end was kept as damage: %v", kept)
			}
		})
	}
}

func TestDamageInTheMiddle(t *testing.T) {
	first := len(appendAdmit(nil, admission("a")))
	for name, spoil := range map[string]func(data []byte){
		"checksum": func(data []byte) { data[3*first+20] ^= 1 },
		"length":   func(data []byte) { data[3*first+2] = 0xff },
		"version": func(data []byte) { // of a later program, with a valid checksum
			data[3*first+frameHead] = 99
			seal(data[:3*first+len(appendEnd(nil, record("a")))], 3*first)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, data := writeJournal(t, dir)
			spoil(data)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			var l ledger
			var log logBuffer
			b := openLedger(t, dir, &l, &log, still)
			wantOutcomes(t, &l, 1, 2) // the end of a is damaged; the end of b follows it
			if log.count("a part of a journal file cannot be read") != 1 || log.count("parts of the journal are damaged") != 1 {
				t.Errorf("log: %s", log.buf.String())
			}
			end := int64(len(appendEnd(nil, record("a"))))
			if got, want := b.Depth().Found, (Found{Rows: 1, Interrupted: 2, Damaged: 1, DamagedBytes: end}); got != want {
				t.Errorf("found %+v, want %+v", got, want)
			}
			kept, err := os.ReadFile(strings.TrimSuffix(path, segmentSuffix) + damagedSuffix)
			if err != nil || len(kept) != len(data) {
				t.Errorf("the damaged file was not kept: %v", err)
			}
			mustAdmit(t, b, "d")
			abandon(b)
			openLedger(t, dir, &l, &log, still)
			wantOutcomes(t, &l, 1, 3)
		})
	}
}

// A record between two damaged places is stored, and an interrupted row contains the pieces that had passed.
func TestReplayKeepsWhatIsReadable(t *testing.T) {
	dir := t.TempDir()
	var l ledger
	var log logBuffer
	b := openLedger(t, dir, &l, &log, still)
	mustAdmit(t, b, "a", "b", "c")
	if ahead := b.Passed("c", 7); ahead != 7 {
		t.Errorf("7 pieces: ahead %d", ahead)
	}
	if ahead := b.Passed("c", 40); ahead != 45 {
		t.Errorf("40 pieces: ahead %d", ahead)
	}
	mustEnd(t, b, "a", "b")
	abandon(b)
	path := segments(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(appendAdmit(nil, admission("a")))-1] ^= 1               // the admission of a, whose end contains the same fields
	data[len(data)-1-len(appendEnd(nil, record("b")))] ^= 1          // the end of a
	data = append(data, appendPassed(nil, "c", 99)[:frameHead+3]...) // torn
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b = openLedger(t, dir, &l, &log, still)
	wantOutcomes(t, &l, 1, 1) // a is lost, because both of its records are damaged
	if r := l.rows["c"]; r.CompletionTokens != 45 || !r.Estimated || r.PromptTokens != 11 {
		t.Errorf("interrupted row %+v", r)
	}
	if f := b.Depth().Found; f.Damaged != 2 || f.TornBytes != frameHead+3 {
		t.Errorf("found %+v", f)
	}
}

func TestReplayTwiceGivesNoDoubles(t *testing.T) {
	dir, saved := t.TempDir(), t.TempDir()
	writeJournal(t, dir)
	copyJournal(t, dir, saved)
	st := openStore(t, filepath.Join(dir, "test.db"))
	for round := range 3 {
		var log logBuffer
		b, err := Open(t.Context(), dir, st, log.logger(), still)
		if err != nil {
			t.Fatal(err)
		}
		wantTotal(t, st, 3)
		if round == 0 && log.count("rows=2 interrupted=1") != 1 || round > 0 && log.count("interrupted") != 0 {
			t.Errorf("round %d: %s", round, log.buf.String())
		}
		abandon(b)
		copyJournal(t, saved, dir) // as if the files still existed
	}
}

// A long journal does not delay a start: a part moves before Open returns, the rest afterwards. Each row is reported once to the limits,
// from the store or from the journal, also after kills in between.
func TestALongJournalMovesWhileTheServiceRuns(t *testing.T) {
	dir := t.TempDir()
	l := ledger{fail: errDown}
	o := still
	o.SegmentBytes = 500_000
	b := openLedger(t, dir, &l, &logBuffer{}, o)
	all := ids("a", startRows+5*chunkRows)
	mustAdmit(t, b, "open1")
	booked(t, b, all...)
	mustAdmit(t, b, "open2")
	abandon(b)
	l.setFail(nil)
	l.rows = map[string]api.Record{}
	for _, id := range all[:1234] {
		l.rows[id] = *record(id) // moved before the kill
	}

	crashed := dir
	for round, first := range []int{startRows, startRows + batchRows, len(all)} {
		later := map[string]bool{}
		o.Later = func(r *api.Record) { later[r.ID] = true }
		o.Begin = func() error {
			if len(later)+len(l.rows) != len(all)+2 {
				t.Errorf("round %d: %d rows in the store and %d in the journal, want %d", round, len(l.rows), len(later), len(all)+2)
			}
			return nil
		}
		dir = t.TempDir()
		copyJournal(t, crashed, dir) // with all files, as if the kill came before the start had removed any
		b = openLedger(t, dir, &l, &logBuffer{}, o)
		if n := len(l.rows) - 2; n != first || len(later) != len(all)-first || b.Depth().Waiting != len(later) {
			t.Errorf("round %d: %d rows in the store, %d reported as later and %d waiting, want %d and the others", round, n, len(later), b.Depth().Waiting, first)
		}
		for id := range later {
			if _, stored := l.rows[id]; stored {
				t.Fatalf("round %d: row %s is in the store and counted as later", round, id)
			}
		}
		b.tidyJournal()
		if b.queue.kept > 0 {
			t.Errorf("round %d: %d rows are in memory", round, b.queue.kept)
		}
		if round < 2 {
			abandon(b)
			continue
		}
		mustFlush(t, b)
		b.tidyJournal()
		if left := segments(t, dir); len(left) != 1 {
			t.Errorf("files %v stay", left)
		}
	}
	if l.rows["open1"].Outcome != api.OutcomeInterrupted || l.rows["open2"].Outcome != api.OutcomeInterrupted {
		t.Errorf("interrupted: %+v, %+v", l.rows["open1"], l.rows["open2"])
	}
	delete(l.rows, "open1")
	delete(l.rows, "open2")
	wantRows(t, &l, all...)
}

// A journal of version 0.1.0 is read: one request without an end and 31 with one, in several files.
func TestJournalOfAnOlderVersion(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(journalDir(dir), os.DirFS("testdata/0.1.0")); err != nil {
		t.Fatal(err)
	}
	var l ledger
	b := openLedger(t, dir, &l, &logBuffer{}, still)
	if got, want := b.Depth().Found, (Found{Rows: 31, Interrupted: 1}); got != want {
		t.Errorf("found %+v, want %+v", got, want)
	}
	if r := l.rows["lost"]; r.Outcome != api.OutcomeInterrupted || r.CompletionTokens != 45 || r.ReservedGPU != 3*time.Second {
		t.Errorf("interrupted row %+v", r)
	}
	delete(l.rows, "lost")
	wantRows(t, &l, append(append(append(ids("0-", 10), ids("1-", 10)...), ids("2-", 10)...), "long")...)
}

// A record after damage that is longer than the reader's buffer is found, at any distance.
func TestDamageLongerThanTheBuffer(t *testing.T) {
	cut := len(appendAdmit(nil, admission("a")))
	// The second is a record of which the buffer has only the beginning.
	for _, gap := range []int{readAhead - maxFrame, readAhead - cut - 10, readAhead - cut, readAhead, 2*readAhead + 12345} {
		dir := t.TempDir()
		path, data := writeJournal(t, dir)
		noise := make([]byte, gap)
		for i := range noise {
			noise[i] = byte(i * 7 / 3)
		}
		data = append(append(append([]byte(nil), data[:cut]...), noise...), data[cut:]...)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var l ledger
		b := openLedger(t, dir, &l, &logBuffer{}, still)
		wantOutcomes(t, &l, 2, 1)
		if got, want := b.Depth().Found, (Found{Rows: 2, Interrupted: 1, Damaged: 1, DamagedBytes: int64(gap)}); got != want {
			t.Errorf("%d bytes of damage: found %+v, want %+v", gap, got, want)
		}
	}
}

const childDir = "USAGE_TEST_CHILD_DIR"

// serveUntilKilled is the child process of TestKill. It prints what it was promised.
func serveUntilKilled(dir string) {
	ctx := context.Background()
	st, err := store.Create(ctx, filepath.Join(dir, "test.db"))
	if err != nil {
		panic(err)
	}
	b, err := Open(ctx, dir, st, slog.New(slog.DiscardHandler), Options{MoveEvery: 5 * time.Millisecond, SyncEvery: 5 * time.Millisecond, RotateEvery: 10 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := b.Admit(admission(id), true); err != nil {
			panic(err)
		}
		fmt.Println("admitted", id)
		if i%3 == 0 {
			continue // still open at the kill
		}
		if err := b.End(record(id)); err != nil {
			panic(err)
		}
		fmt.Println("ended", id)
	}
}

// TestKill kills a running process with SIGKILL, three times on the same directory, and compares what it was promised with the stored
// rows.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	promised := make(map[string]string) // ID to its last printed word
	for round := range 3 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines, n := bufio.NewReader(out), 0
		for {
			line, err := lines.ReadString('\n')
			if err == io.EOF {
				break // ignore an incomplete last line
			}
			if err != nil {
				t.Fatal(err)
			}
			word, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			promised[id] = word
			if n++; n == 700+300*round {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		child.Wait()
	}

	st := openStore(t, filepath.Join(dir, "test.db"))
	b, err := Open(t.Context(), dir, st, slog.New(slog.DiscardHandler), still)
	if err != nil {
		t.Fatal(err)
	}
	defer abandon(b)
	all, err := st.AllStatistics(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	for id, word := range promised {
		row := all.ByKey[id]
		if row.TotalRequests != 1 {
			t.Fatalf("%s %s: %d rows", word, id, row.TotalRequests)
		}
		exact := row.ByOutcome["ok"] == 1 && row.CompletionTokens == 298
		if word == "ended" && !exact || word == "admitted" && !exact && row.ByOutcome["interrupted"] != 1 {
			t.Fatalf("%s %s: %+v", word, id, row)
		}
	}
	// One request of each child may have been admitted but not printed.
	if extra := all.Total.TotalRequests - int64(len(promised)); len(promised) < 1000 || extra < 0 || extra > 3 {
		t.Fatalf("%d rows for %d requests", all.Total.TotalRequests, len(promised))
	}
}
