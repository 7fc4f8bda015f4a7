package books

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		serveUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// admission is the admission of request i. Its key is its ID, so that the store's statistics by key show each row.
func admission(id string) *api.Admission {
	return &api.Admission{
		ID: id, Key: id, At: noon, Model: "tiny:latest", Endpoint: "/api/chat", Backend: "gpu1", Class: "inference",
		Streamed: true, ClientAddr: "192.0.2.7", PromptEstimate: 11,
	}
}

func record(id string) *api.Record {
	eval := 40 * time.Millisecond
	return &api.Record{
		Admission: *admission(id), Outcome: api.OutcomeOK, Status: 200, PromptTokens: 26, CompletionTokens: 298,
		FirstByte: 12 * time.Millisecond, Total: 60 * time.Millisecond, Slot: 55 * time.Millisecond, OllamaEval: &eval,
		BytesIn: 120, BytesOut: 4096,
	}
}

// ledger is a store in memory that tests can make fail.
type ledger struct {
	mu      sync.Mutex
	rows    map[string]api.Record
	tallies map[api.Tally]int64
	fail    error
	calls   int
}

func (l *ledger) add(_ context.Context, rows []api.Record) (inserted int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls++; l.fail != nil {
		return 0, l.fail
	}
	if l.rows == nil {
		l.rows = make(map[string]api.Record)
	}
	for _, r := range rows {
		if _, ok := l.rows[r.ID]; !ok {
			l.rows[r.ID] = r
			inserted++
		}
	}
	return inserted, nil
}

func (l *ledger) count(_ context.Context, counts []api.Tally) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	if l.tallies == nil {
		l.tallies = make(map[api.Tally]int64)
	}
	for _, t := range counts {
		n := t.Count
		t.Count = 0
		l.tallies[t] += n
	}
	return nil
}

func (l *ledger) setFail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

func (l *ledger) outcomes() map[api.Outcome]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := make(map[api.Outcome]int)
	for _, r := range l.rows {
		n[r.Outcome]++
	}
	return n
}

// logBuffer collects log lines of several goroutines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// still are options under which nothing happens in the background: a test moves rows with Flush and tidyJournal.
var still = Options{SyncEvery: time.Hour, MoveEvery: time.Hour}

func openLedger(t testing.TB, dir string, l *ledger, log *logBuffer, o Options) *Books {
	t.Helper()
	b, err := open(t.Context(), dir, l.add, l.count, log.logger(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { abandon(b) })
	return b
}

func openStore(t testing.TB, path string) *store.Store {
	t.Helper()
	st, err := store.Create(t.Context(), path)
	if err != nil {
		t.Fatalf("store: %v", err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// abandon stops the books like a kill: the files stay, nothing is drained.
func abandon(b *Books) {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.stop()
	b.running.Wait()
	b.journal.close(false)
	b.lock.Release()
}

func mustAdmit(t testing.TB, b *Books, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := b.Admit(admission(id), true); err != nil {
			t.Fatalf("Admit %s: %v", id, err)
		}
	}
}

func mustEnd(t testing.TB, b *Books, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := b.End(record(id)); err != nil {
			t.Fatalf("End %s: %v", id, err)
		}
	}
}

func mustFlush(t testing.TB, b *Books) {
	t.Helper()
	if err := b.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func wantCode(t testing.TB, err error, code api.Code) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error %v, want %s", err, code)
	}
	return e
}

func wantOutcomes(t testing.TB, l *ledger, ok, interrupted int) {
	t.Helper()
	if n := l.outcomes(); n[api.OutcomeOK] != ok || n[api.OutcomeInterrupted] != interrupted || len(l.rows) != ok+interrupted {
		t.Fatalf("stored %v, want %d ok and %d interrupted", n, ok, interrupted)
	}
}

func segments(t testing.TB, dataDir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dataDir, "journal", "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func ids(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return all
}

// copyJournal copies a journal, even one in use, into a new data directory.
func copyJournal(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(to, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range segments(t, from) {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "journal", filepath.Base(path)), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
