package usage

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

// journal is a directory of numbered files, written at the end of the last. Books.mu guards it.
type journal struct {
	dir      string
	segments []*segment // oldest first; the last is written to
	last     int64      // number of the last segment
	seq      int64      // frames written
	synced   int64      // frames known to be on the disk
	named    int64      // highest segment whose directory entry is known to be on the disk
	broken   bool       // the last segment ends in a piece of a frame
	beat     time.Time  // when writeBeat was last called
	doubted  bool       // an fsync has failed, so that what was written may never have reached the disk
	missing  int        // frames that are in memory alone; while there are any, nothing is written but all of it (rewriteLocked)
	again    time.Time  // when what failed is tried again
}

type segment struct {
	file   *os.File // nil once on the disk and closed
	path   string
	size   int64
	head   int64 // bytes of open admissions that it began with
	since  time.Time
	before int64 // rows that had ended when it was begun
	ended  int64 // rows that had ended when the next was begun
}

const segmentSuffix = ".journal"

func journalDir(dataDir string) string { return filepath.Join(dataDir, "journal") }

// rotate begins the next segment with head. ended is the number of rows that ended so far, before how many of them are certainly
// not in head.
func (j *journal) rotate(head []byte, before, ended int64, now time.Time) error {
	path := filepath.Join(j.dir, fmt.Sprintf("%016d%s", j.last+1, segmentSuffix))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(head); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	if n := len(j.segments); n > 0 {
		j.segments[n-1].ended = ended
	}
	size := int64(len(head))
	j.segments = append(j.segments, &segment{file: f, path: path, size: size, head: size, since: now, before: before})
	j.last++
	j.seq++
	j.broken = false
	return nil
}

// append writes one frame with one write. A piece that a full disk let through is cut off again.
func (j *journal) append(frame []byte) error {
	s := j.segments[len(j.segments)-1]
	n, err := s.file.Write(frame)
	if err != nil {
		j.broken = n > 0 && s.file.Truncate(s.size) != nil
		return err
	}
	s.size += int64(n)
	j.seq++
	return nil
}

func (j *journal) bytes() (n int64) {
	for _, s := range j.segments {
		n += s.size
	}
	return n
}

// due says whether a new segment would let older ones go, or this one is long.
func (j *journal) due(o *Options, committed int64, now time.Time) bool {
	s := j.segments[len(j.segments)-1]
	return s.size-s.head > o.SegmentBytes || committed > s.before && (now.Sub(s.since) >= o.RotateEvery || j.bytes() > o.MaxBytes/2)
}

// close closes all files and, when all their rows are in the store, removes them.
func (j *journal) close(empty bool) error {
	var errs []error
	for _, s := range j.segments {
		if s.file != nil {
			errs = append(errs, s.file.Close())
		}
		if empty {
			errs = append(errs, os.Remove(s.path))
		}
	}
	j.segments = nil
	if empty {
		_ = os.Remove(beatPath(j.dir))
	}
	return errors.Join(errs...)
}

// keepJournal syncs what was written, begins new segments and removes those that are booked, until ctx is done.
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

// groundEvery is how often the disk is looked at: without requests nothing is written, and no write fails.
const groundEvery = 2 * time.Second

// lookAtDisk notices a disk that is full or has become read-only. It writes nothing.
func (b *Books) lookAtDisk() {
	_, err := disk.Free(b.journal.dir)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ground.set(b, err)
}

func (b *Books) tidyJournal() {
	seq := b.turnJournal()
	b.beat()
	// A segment goes only after its successor, with the admissions still open, is on the disk.
	if b.sync(seq) == nil {
		b.removeBooked()
	}
}

// turnJournal begins a new segment where that is due, or was owed. It returns what is to be synced.
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
	case b.journal.due(&b.o, b.queue.committed, now):
		b.turning.set(b, b.rotateLocked())
	}
	if b.writing.err != nil || b.turning.err != nil {
		b.journal.again = now.Add(firstRetry)
	}
	return b.journal.seq
}

// appendLocked writes one frame. After a write that could not be undone it first begins a new segment, because what stands
// behind a broken frame is read by search alone. After one that failed, nothing is written until all that is missing is.
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

// rotateLocked begins the next segment with what is open, so that the older ones are needed only for what ended in them.
func (b *Books) rotateLocked() error {
	return b.journal.rotate(b.openLocked(), b.queue.ended, b.queue.ended, b.o.Now())
}

// rewriteLocked begins the next segment with all that is open or waits for the store, so that the older ones are not needed at
// all. The caller holds syncMu too: it closes them.
func (b *Books) rewriteLocked() error {
	head := b.openLocked()
	for _, batch := range b.queue.batches {
		head = append(head, batch.frames...)
	}
	older := b.journal.segments
	if err := b.journal.rotate(head, b.queue.committed, b.queue.ended, b.o.Now()); err != nil {
		return err
	}
	for _, s := range older {
		if s.file != nil {
			s.file.Close()
			s.file = nil
		}
		s.ended = 0
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

// sync returns when the frames up to seq are on the disk. Those who wait together share one fsync.
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
	// Linux tells of a failed write-back once and then takes the pages for clean: an fsync that succeeds afterwards says nothing
	// of what was written before (lwn.net/Articles/752063).
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
		s.file.Close() // synced, and no longer written to
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
		if s := b.journal.segments[n]; s.file != nil || s.ended > b.queue.committed {
			break
		}
		n++
	}
	booked := slices.Clone(b.journal.segments[:n])
	b.journal.segments = slices.Delete(b.journal.segments, 0, n)
	b.mu.Unlock()
	for _, s := range booked {
		if err := os.Remove(s.path); err != nil {
			b.log.Warn("a journal file that is booked cannot be removed; the next start will", "file", s.path, "error", err)
		}
	}
}

// segmentFile is a journal file found on the disk.
type segmentFile struct {
	number int64
	path   string
}

// findSegments lists the segments in order. last is the highest number ever seen there, damaged files included.
func findSegments(dir string) (found []segmentFile, last int64, err error) {
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
			found = append(found, segmentFile{number, filepath.Join(dir, e.Name())})
		}
	}
	slices.SortFunc(found, func(a, b segmentFile) int { return cmp.Compare(a.number, b.number) })
	return found, last, nil
}
