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
	// scheduledWork is the directory where scheduled backups are written. There is only one, so that two backups never run at the same
	// time, and the next one removes what a killed one left.
	scheduledWork = "scheduled.partial"
	mostRetry     = 15 * time.Minute
	// spareSpace stays free, so that a backup never fills the disk.
	spareSpace = 64 << 20
)

// scheduledName matches the names of scheduled backups. Other files are never removed.
var scheduledName = regexp.MustCompile(`^ollama-api-service-(\d{8}-\d{6})\.tar$`)

// Schedule writes backups while the service runs, and keeps the newest ones.
type Schedule struct {
	Every  time.Duration
	Keep   int
	Dir    string
	Source func() Source // Now is set by the schedule
	Log    *slog.Logger

	last atomic.Int64 // Unix time of the newest good backup; 0 means none
}

// Last returns when the newest good backup was made, or zero without a backup or a schedule.
func (s *Schedule) Last() time.Time {
	if s == nil {
		return time.Time{}
	}
	if at := s.last.Load(); at != 0 {
		return time.Unix(at, 0)
	}
	return time.Time{}
}

// Run writes a backup whenever one is due, until ctx ends. It depends on the newest backup in the directory, so that restarts neither
// delay nor multiply backups. It logs a failure and tries again.
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
		case <-time.After(min(wait, time.Hour)): // the clock continues while a machine is suspended
		}
	}
}

// due returns how long to wait for the next backup.
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
		s.Log.Error("the scheduled backup failed, and older backups are kept: the next attempt is within a quarter of an hour", attrs...)
		return false
	}
	s.last.Store(begun.Unix())
	s.Log.Info("wrote a scheduled backup", "file", path, "bytes", m.Bytes(),
		"keys", m.Contents.Keys, "requests", m.Contents.Requests, "seconds", time.Since(begun).Seconds())
	s.removeOld(begun)
	return true
}

func (s *Schedule) write(ctx context.Context, now time.Time) (*Manifest, string, error) {
	if at := disk.Unmounted(s.Dir); at != "" {
		return nil, "", fmt.Errorf("the disk for %s in /etc/fstab is not mounted (%w)", at, syscall.ENODEV)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, "", err
	}
	// A directory that cannot be listed would get backups without end, because no backup in it would be found.
	if _, err := os.ReadDir(s.Dir); err != nil {
		return nil, "", err
	}
	src := s.Source()
	src.Now = now
	size, err := src.Store.Bytes(ctx)
	if err != nil {
		return nil, "", err
	}
	// The copy of the database and the archive made from it exist at the same time.
	if free, err := disk.Free(s.Dir); err != nil {
		return nil, "", err
	} else if need := 2*size + spareSpace; free < need {
		return nil, "", fmt.Errorf("there is not enough space: the backup temporarily needs %d MiB, and %d MiB are free (%w)", need>>20, free>>20, syscall.ENOSPC)
	}
	path := filepath.Join(s.Dir, "ollama-api-service-"+now.UTC().Format(scheduledTime)+".tar")
	m, err := writeIn(ctx, src, filepath.Join(s.Dir, scheduledWork), path)
	return m, path, err
}

// removeOld keeps the newest backups, including the one of now.
func (s *Schedule) removeOld(now time.Time) {
	files := s.past(now)
	for _, f := range files[:max(0, len(files)-s.Keep)] {
		s.remove(f)
	}
}

// past returns the backups up to now. Those dated in the future are kept, because this clock may be the wrong one.
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

// files returns the scheduled backups, the oldest first. os.ReadDir sorts by name, which is by time.
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
