package backup

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"ollama-api-service/internal/store"
)

// schedule keeps three backups, one a day.
func schedule(t *testing.T, src Source) (*Schedule, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return &Schedule{
		Every: 24 * time.Hour, Keep: 3, Dir: filepath.Join(t.TempDir(), "backups"),
		Source: func() Source { return src }, Log: slog.New(slog.NewTextHandler(&log, nil)),
	}, &log
}

func (s *Schedule) names() (list []string) {
	for _, f := range s.files() {
		list = append(list, filepath.Base(f.path))
	}
	return list
}

func TestScheduledBackups(t *testing.T) {
	_, src := service(t)
	book(t, src.Store, 0, 10)
	s, log := schedule(t, src)
	for day := range 5 {
		now := noon.AddDate(0, 0, day)
		if wait := s.due(now); wait > 0 {
			t.Fatalf("day %d: the next is due in %s, want now", day, wait)
		}
		if _, _, err := s.write(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		s.removeOld(now)
		if wait := s.due(now.Add(time.Hour)); wait != 23*time.Hour || !s.Last().Equal(now) {
			t.Errorf("day %d: the next is due in %s after the backup of %s, want 23h", day, wait, s.Last())
		}
	}
	if got := strings.Join(s.names(), " "); got != "ollama-api-service-20261127-120000.tar ollama-api-service-20261128-120000.tar ollama-api-service-20261129-120000.tar" {
		t.Errorf("kept: %s, want the last three", got)
	}
	if left := names(t, s.Dir); len(left) != 3 {
		t.Errorf("left: %q, want only the backups", left)
	}
	to := t.TempDir()
	restore(t, s.files()[2].path, to)
	if c, _, err := store.Examine(t.Context(), filepath.Join(to, databaseName)); err != nil || c.Requests != 10 {
		t.Errorf("restored %+v, %v, want 10 requests", c, err)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s, want none", log)
	}
	// A backup dated in the future neither delays the next one nor counts, and a clock that is behind removes none. Other files are not
	// touched.
	other, ahead := filepath.Join(s.Dir, "ollama-api-service-before-the-move.tar"), filepath.Join(s.Dir, "ollama-api-service-20360101-000000.tar")
	for _, path := range []string{other, ahead} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, now := range []time.Time{noon.AddDate(0, 0, 5), noon.AddDate(-10, 0, 0)} {
		if wait := s.due(now); wait > 0 {
			t.Errorf("%s: the next is due in %s, want now", now, wait)
		}
		if _, _, err := s.write(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		s.removeOld(now)
		if wait := s.due(now); wait != s.Every {
			t.Errorf("%s: the following one is due in %s, want %s", now, wait, s.Every)
		}
	}
	want := "ollama-api-service-20161125-120000.tar ollama-api-service-20261128-120000.tar ollama-api-service-20261129-120000.tar ollama-api-service-20261130-120000.tar ollama-api-service-20360101-000000.tar"
	if got := strings.Join(s.names(), " "); got != want {
		t.Errorf("kept: %s, want %s", got, want)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("a file that is not a scheduled backup: %v", err)
	}
}

// Two backups never run at the same time, and a failed one does not remove older ones.
func TestScheduledBackupThatFails(t *testing.T) {
	_, src := service(t)
	s, log := schedule(t, src)
	if !s.once(t.Context()) {
		t.Fatal(log)
	}
	at := s.Last()
	work, err := takeWorkDir(filepath.Join(s.Dir, scheduledWork))
	if err != nil {
		t.Fatal(err)
	}
	if s.once(t.Context()) || !strings.Contains(log.String(), "another backup") {
		t.Errorf("while another one runs: %s", log)
	}
	work.remove()
	src.Store.Close()
	if s.once(t.Context()) || strings.Count(log.String(), "the scheduled backup failed") != 2 || !s.Last().Equal(at) || len(s.files()) != 1 {
		t.Errorf("%d backups, the last of %s, want the previous one: %s", len(s.files()), s.Last(), log)
	}
}

// Run waits until the next backup is due, and retries soon after a failure.
func TestScheduleRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := schedule(t, Source{})
		var tries atomic.Int32
		s.Source = func() Source {
			tries.Add(1)
			panic("no store in this test")
		}
		if err := os.MkdirAll(s.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		newest := time.Now().UTC().Truncate(time.Second)
		if err := os.WriteFile(filepath.Join(s.Dir, "ollama-api-service-"+newest.Format(scheduledTime)+".tar"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { _ = recover() }()
			s.Run(ctx)
		}()
		time.Sleep(24*time.Hour - time.Second)
		synctest.Wait()
		if n := tries.Load(); n != 0 {
			t.Errorf("%d attempts before one is due, want 0", n)
		}
		time.Sleep(2 * time.Second)
		<-ended
		if n := tries.Load(); n != 1 {
			t.Errorf("%d attempts when one was due, want 1: %s", n, log)
		}
		stop()
	})
}

func TestRestoreReadsCompressedBackups(t *testing.T) {
	_, src := service(t)
	book(t, src.Store, 0, 25)
	path, _ := write(t, src)
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var zipped, zstded, long bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	zs, _ := zstd.NewWriter(&zstded)
	zl, err := zstd.NewWriter(&long, zstd.WithWindowSize(maxWindow))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gz, zs, zl} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zstded.Bytes(), "zstd --long": long.Bytes()} {
		u, err := unpack(t, bytes.NewReader(text), t.TempDir())
		if err != nil || u.Manifest.Contents.Requests != 25 {
			t.Errorf("%s: %v, want 25 requests", name, err)
			continue
		}
		u.Discard()
		for _, at := range []int{3, len(text) / 2, len(text) - len(text)/4} {
			if _, err := unpack(t, bytes.NewReader(text[:at]), t.TempDir()); err == nil {
				t.Errorf("%s with only %d of %d bytes was restored, want an error", name, at, len(text))
			}
		}
	}
	for head, says := range map[string]string{"\xfd7zXZ\x00": "xz", "BZh9": "bzip2", "PK\x03\x04": "unzip", "": "empty", "hello, this is no backup": "not a backup"} {
		if _, err := Open(t.Context(), strings.NewReader(head+strings.Repeat("\x00", min(len(head), 1)*600))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want one with %q", head, err, says)
		}
	}
}
