package books

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/disk"
)

// journal is a directory of numbered files. It is written at the end of the last file. Books.mu guards it.
type journal struct {
	dir      string
	segments []*segment // oldest first; the last one is written
	size     int64      // of all segments, in bytes
	last     int64      // number of the last segment
	seq      int64      // frames written
	synced   int64      // frames known to be on the disk
	named    int64      // highest segment whose directory entry is known to be on the disk
	broken   bool       // the last segment ends with an incomplete frame
	beat     time.Time  // when writeBeat was last called
	doubted  bool       // an fsync has failed, so earlier writes may not be on the disk
	missing  int        // frames that are only in memory; until rewriteLocked has written all of them, nothing else is written
	again    time.Time  // when to retry after a failure
}

type segment struct {
	file    *os.File // nil once it is synced and closed
	path    string
	number  int64
	size    int64
	head    int64 // bytes of open admissions at its start
	since   time.Time
	chunks  int  // waiting chunks that are in it
	booked  bool // rows of it are in the store
	damaged bool // a part of it could not be read, so it is kept when nothing else needs it
}

const segmentSuffix = ".journal"

func journalDir(dataDir string) string { return filepath.Join(dataDir, "journal") }

// rotate starts the next segment with head.
func (j *journal) rotate(head []byte, now time.Time) error {
	path := filepath.Join(j.dir, fmt.Sprintf("%016d%s", j.last+1, segmentSuffix))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(head); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	size := int64(len(head))
	j.keep([]*segment{{file: f, path: path, number: j.last + 1, size: size, head: size, since: now}})
	j.last++
	j.seq++
	j.broken = false
	return nil
}

// keep adds segments at the end.
func (j *journal) keep(more []*segment) {
	j.segments = append(j.segments, more...)
	for _, s := range more {
		j.size += s.size
	}
}

// current returns the segment that is written.
func (j *journal) current() *segment { return j.segments[len(j.segments)-1] }

// append writes one frame with one write. If a full disk accepts only a part of it, that part is truncated again.
func (j *journal) append(frame []byte) error {
	s := j.current()
	n, err := s.file.Write(frame)
	if err != nil {
		j.broken = n > 0 && s.file.Truncate(s.size) != nil
		return err
	}
	s.size += int64(n)
	j.size += int64(n)
	j.seq++
	return nil
}

// due reports whether the segment is long, or a new one would allow it to be removed.
func (j *journal) due(o *Options, now time.Time) bool {
	s := j.current()
	return s.size-s.head > o.SegmentBytes || s.booked && (now.Sub(s.since) >= o.RotateEvery || j.size > o.MaxBytes/2)
}

// close closes all files and, when all their rows are in the store, removes them.
func (j *journal) close(empty bool) error {
	var errs []error
	for _, s := range j.segments {
		if s.file != nil {
			errs = append(errs, s.file.Close())
		}
		if empty {
			errs = append(errs, s.discard())
		}
	}
	j.segments = nil
	if empty {
		_ = os.Remove(beatPath(j.dir))
	}
	return errors.Join(errs...)
}

// keepJournal syncs the journal, starts new segments and removes those that are in the store, until ctx is done.
func (b *Books) keepJournal(ctx context.Context) {
	tick, look := time.NewTicker(b.o.SyncEvery), time.NewTicker(groundEvery)
	defer tick.Stop()
	defer look.Stop()
	for {
		select {
		case <-tick.C:
			b.tidyJournal()
		case <-look.C:
			b.lookAtDisk()
		case <-ctx.Done():
			return
		}
	}
}

// groundEvery is how often the disk is checked, because without requests nothing is written and no write fails.
const groundEvery = 2 * time.Second

// lookAtDisk detects a disk that is full or has become read-only. It writes nothing.
func (b *Books) lookAtDisk() {
	_, err := disk.Free(b.journal.dir)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ground.set(b, err)
}

func (b *Books) tidyJournal() {
	seq := b.turnJournal()
	b.beat()
	// Remove a segment only after its successor, with the open admissions, is on the disk.
	if b.sync(seq) == nil {
		b.removeBooked()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.journal.doubted {
		b.queue.shrink(b.o.KeepRows, b.journal.synced)
	}
}

// turnJournal starts a new segment if that is due or overdue. It returns the frame to sync.
func (b *Books) turnJournal() (seq int64) {
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.o.Now()
	if now.Before(b.journal.again) {
		return b.journal.seq
	}
	switch {
	case b.journal.missing > 0:
		b.writing.set(b, b.rewriteLocked())
	case b.journal.due(&b.o, now):
		b.turning.set(b, b.rotateLocked())
	}
	if b.writing.err != nil || b.turning.err != nil {
		b.journal.again = now.Add(firstRetry)
	}
	return b.journal.seq
}

// appendLocked writes one frame. After a write that could not be undone, it first starts a new segment, because frames after a broken
// frame are found only by searching. After a failed write, nothing is written until everything that is missing is written.
func (b *Books) appendLocked(frame []byte) error {
	if b.journal.missing > 0 {
		b.journal.missing++
		return b.writing.err
	}
	var err error
	if b.journal.broken {
		err = b.rotateLocked()
	}
	if err == nil {
		err = b.journal.append(frame)
	}
	if b.writing.set(b, err); err != nil {
		b.journal.missing, b.journal.again = 1, b.o.Now().Add(firstRetry)
	}
	return err
}

// rotateLocked starts the next segment with the open admissions, so that older ones are needed only for rows that ended in them.
func (b *Books) rotateLocked() error {
	return b.journal.rotate(b.openLocked(), b.o.Now())
}

// rewriteLocked starts the next segment with everything that is open or that waits for the store in memory, so that older ones are needed
// only for rows that are certainly on the disk. The caller also holds syncMu, because this closes them.
func (b *Books) rewriteLocked() error {
	head := b.openLocked()
	first := int64(len(head))
	for _, c := range b.queue.chunks {
		head = append(head, c.frames...)
	}
	older := b.journal.segments
	if err := b.journal.rotate(head, b.o.Now()); err != nil {
		return err
	}
	for _, c := range b.queue.chunks {
		if c.kept {
			c.place(b.journal.current(), first)
			first += int64(len(c.frames))
			c.to, c.seq = first, b.journal.seq
		}
	}
	for _, s := range older {
		if s.file != nil {
			s.file.Close()
			s.file = nil
		}
	}
	b.journal.missing, b.journal.doubted = 0, false
	return nil
}

func (b *Books) openLocked() (frames []byte) {
	for id, a := range b.open {
		frames = append(frames, a.frame...)
		if a.passed > 0 {
			frames = appendPassed(frames, id, a.passed)
		}
	}
	return frames
}

// sync returns when the frames up to seq are on the disk. Concurrent callers share one fsync.
func (b *Books) sync(seq int64) error {
	b.syncMu.Lock()
	defer b.syncMu.Unlock()
	err := b.syncHeld(seq)
	b.mu.Lock()
	doubted := b.journal.doubted
	if err == nil && doubted {
		err = b.rewriteLocked()
	}
	b.mu.Unlock()
	if err == nil && doubted {
		err = b.syncHeld(math.MaxInt64)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Linux reports a failed write-back once and then considers the pages clean: a later fsync that succeeds says nothing about earlier
	// writes (lwn.net/Articles/752063).
	b.journal.doubted = err != nil
	b.syncing.set(b, err)
	return err
}

func (b *Books) syncHeld(seq int64) error {
	b.mu.Lock()
	var behind []*segment
	for _, s := range b.journal.segments {
		if s.file != nil {
			behind = append(behind, s)
		}
	}
	upTo, last, named := b.journal.seq, b.journal.last, b.journal.named
	done := b.journal.synced >= seq && !b.journal.doubted || len(behind) == 0
	b.mu.Unlock()
	if done {
		return nil
	}

	err := syncFiles(b.journal.dir, behind, last > named)

	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		return err
	}
	b.journal.synced, b.journal.named = upTo, last
	for _, s := range behind[:len(behind)-1] {
		s.file.Close() // synced and no longer written
		s.file = nil
	}
	return nil
}

func syncFiles(dir string, segments []*segment, names bool) error {
	for _, s := range segments {
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	if !names {
		return nil
	}
	return disk.SyncDirectory(dir)
}

// removeBooked deletes the oldest segments whose rows are all in the store.
func (b *Books) removeBooked() {
	b.mu.Lock()
	n := 0
	for n < len(b.journal.segments)-1 {
		s := b.journal.segments[n]
		if s.file != nil || s.chunks > 0 {
			break
		}
		b.journal.size -= s.size
		n++
	}
	booked := slices.Clone(b.journal.segments[:n])
	b.journal.segments = slices.Delete(b.journal.segments, 0, n)
	b.mu.Unlock()
	for _, s := range booked {
		if err := s.discard(); err != nil {
			b.log.Warn("a journal file that is no longer needed cannot be removed; the next start removes it", "file", s.path, "cause", err)
		}
	}
}

// discard removes the file of a segment that is no longer needed. It keeps a damaged one for investigation, under another name.
func (s *segment) discard() error {
	if s.damaged {
		return os.Rename(s.path, strings.TrimSuffix(s.path, segmentSuffix)+damagedSuffix)
	}
	return os.Remove(s.path)
}

// syncPaths syncs files that an earlier process has written.
func syncPaths(segments []*segment) error {
	for _, s := range segments {
		f, err := os.OpenFile(s.path, os.O_RDWR, 0) // Windows syncs only files that may be written
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// findSegments lists the segments in order. last is the highest number in use, including damaged files.
func findSegments(dir string) (found []*segment, last int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		digits, suffix, _ := strings.Cut(e.Name(), ".")
		number, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			continue
		}
		last = max(last, number)
		if "."+suffix == segmentSuffix {
			found = append(found, &segment{path: filepath.Join(dir, e.Name()), number: number})
		}
	}
	slices.SortFunc(found, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	return found, last, nil
}
