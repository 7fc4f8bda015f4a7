package backup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"ollama-api-service/internal/disk"
)

const (
	scheduledTime = "20060102-150405"
	// scheduledWork is where scheduled backups are made: one place, so that no two are made at one time, and that what a killed one left
	// is removed by the next.
	scheduledWork = "scheduled.partial"
	mostRetry     = 15 * time.Minute
	// spareSpace stays free: a backup must not be what fills the disk.
	spareSpace = 64 << 20
)

// scheduledName is the name of a scheduled backup. Nothing else is ever removed.
var scheduledName = regexp.MustCompile(`^ollama-api-service-(\d{8}-\d{6})\.tar$`)

// Schedule writes backups while the service runs, and keeps the last ones.
type Schedule struct {
	Every  time.Duration
	Keep   int
	Dir    string
	Source func() Source // Now is set by the schedule
	Log    *slog.Logger

	last atomic.Int64 // Unix time of the newest good one; 0 is none
}

// Last is when the newest good backup was made; zero where there is none, or no schedule.
func (s *Schedule) Last() time.Time {
	if s == nil {
		return time.Time{}
	}
	if at := s.last.Load(); at != 0 {
		return time.Unix(at, 0)
	}
	return time.Time{}
}

// Run writes a backup whenever one is due, until ctx ends. The newest one in the directory counts, of whichever run of the service, so
// that restarts neither delay nor multiply backups. A failure is logged and tried again.
func (s *Schedule) Run(ctx context.Context) {
	for {
		wait := s.due(time.Now())
		if wait <= 0 {
			if wait = 0; !s.once(ctx) {
				wait = min(s.Every/4, mostRetry)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(wait, time.Hour)): // a suspended machine has a clock that moves on
		}
	}
}

// due is how long until the next backup.
func (s *Schedule) due(now time.Time) time.Duration {
	files := s.past(now)
	if len(files) == 0 {
		return 0
	}
	newest := files[len(files)-1].at
	s.last.Store(newest.Unix())
	return newest.Add(s.Every).Sub(now)
}

// once reports whether it wrote a backup.
func (s *Schedule) once(ctx context.Context) bool {
	begun := time.Now()
	m, path, err := s.write(ctx, begun)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		attrs := []any{"cause", err.Error(), "dir", s.Dir}
		if fault, ok := disk.Cause(err); ok {
			attrs = append(attrs, "hint", fault.Hint)
		}
		s.Log.Error("no backup was made, and the ones before are kept: it is tried again within a quarter of an hour", attrs...)
		return false
	}
	s.last.Store(begun.Unix())
	s.Log.Info("a backup was made", "file", path, "bytes", m.Bytes(), "keys", m.Contents.Keys, "requests", m.Contents.Requests, "seconds", time.Since(begun).Seconds())
	s.removeOld(begun)
	return true
}

func (s *Schedule) write(ctx context.Context, now time.Time) (*Manifest, string, error) {
	if at := disk.Unmounted(s.Dir); at != "" {
		return nil, "", fmt.Errorf("the disk that /etc/fstab has for %s is not mounted (%w)", at, syscall.ENODEV)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, "", err
	}
	// A directory that cannot be listed would get backups without end: none is found to be young enough, or too old.
	if _, err := os.ReadDir(s.Dir); err != nil {
		return nil, "", err
	}
	src := s.Source()
	src.Now = now
	size, err := src.Store.Bytes(ctx)
	if err != nil {
		return nil, "", err
	}
	// A copy of the database and the archive that is made from it are there at one time.
	if free, err := disk.Free(s.Dir); err != nil {
		return nil, "", err
	} else if need := 2*size + spareSpace; free < need {
		return nil, "", fmt.Errorf("there is no room for it: it needs %d MiB for a moment, and %d MiB are free (%w)", need>>20, free>>20, syscall.ENOSPC)
	}
	path := filepath.Join(s.Dir, "ollama-api-service-"+now.UTC().Format(scheduledTime)+".tar")
	m, err := writeIn(ctx, src, filepath.Join(s.Dir, scheduledWork), path)
	return m, path, err
}

// removeOld keeps the newest ones, now's among them.
func (s *Schedule) removeOld(now time.Time) {
	files := s.past(now)
	for _, f := range files[:max(0, len(files)-s.Keep)] {
		s.remove(f)
	}
}

// past are the backups up to now. Those of the future are left as they are: this clock may be the wrong one, and they the good ones.
func (s *Schedule) past(now time.Time) []scheduled {
	return slices.DeleteFunc(s.files(), func(f scheduled) bool { return f.at.After(now) })
}

func (s *Schedule) remove(f scheduled) {
	if err := os.Remove(f.path); err != nil {
		s.Log.Warn("an old backup cannot be removed", "file", f.path, "cause", err.Error())
	}
}

type scheduled struct {
	path string
	at   time.Time
}

// files are the scheduled backups, the oldest first. os.ReadDir sorts by name, which is by time.
func (s *Schedule) files() (list []scheduled) {
	entries, _ := os.ReadDir(s.Dir)
	for _, e := range entries {
		m := scheduledName.FindStringSubmatch(e.Name())
		if m == nil || !e.Type().IsRegular() {
			continue
		}
		if at, err := time.Parse(scheduledTime, m[1]); err == nil {
			list = append(list, scheduled{filepath.Join(s.Dir, e.Name()), at})
		}
	}
	return list
}
