package books

import (
	"errors"
	"io"

	"ollama-api-service/internal/api"
)

const (
	maxFrame = frameHead + maxPayload
	// readAhead bounds the memory for reading a file, which may be long.
	readAhead = 1 << 20
)

// readFrames calls take with each readable record of a file, or of a part of it that begins at byte `at`, and with the bytes from which to
// which it has it. After unreadable bytes, which it counts in found and reports, it searches for the next record.
func (b *Books) readFrames(
	path string, from io.Reader, at int64, found *Found, take func(kind byte, r api.Record, from, to int64) error,
) error {
	w := window{from: from, at: at}
	for {
		if err := w.fill(); err != nil || len(w.rest) == 0 {
			return err
		}
		begin := w.at
		kind, record, rest, cause := readFrame(w.rest)
		if cause == nil {
			w.skip(len(w.rest) - len(rest))
			if err := take(kind, record, begin, w.at); err != nil {
				return err
			}
			continue
		}
		if err := w.skipUnreadable(); err != nil {
			return err
		}
		b.unreadable(path, begin, w.at-begin, len(w.rest) == 0 && errors.Is(cause, errTorn), found, cause)
	}
}

// unreadable reports unreadable bytes of a file. They are torn if they are its end, as a kill or a power failure leaves it.
func (b *Books) unreadable(path string, at, gap int64, torn bool, found *Found, cause error) {
	if torn {
		found.TornBytes += gap
		b.log.Warn("the end of a journal file cannot be read, as after a kill or a power failure", "file", path, "at", at, "bytes dropped", gap, "cause", cause)
		return
	}
	found.Damaged++
	found.DamagedBytes += gap
	b.log.Error("a part of a journal file cannot be read", "file", path, "at", at, "bytes dropped", gap, "cause", cause)
}

// window is the part of a file that is in memory.
type window struct {
	from   io.Reader
	at     int64  // where rest begins
	rest   []byte // read and not skipped yet
	buffer []byte
	ended  bool // rest is the end
}

// fill reads on if rest may have only a part of a frame.
func (w *window) fill() error {
	if w.ended || len(w.rest) >= maxFrame {
		return nil
	}
	if w.buffer == nil {
		w.buffer = make([]byte, readAhead)
	}
	had := copy(w.buffer, w.rest)
	n, err := io.ReadFull(w.from, w.buffer[had:])
	w.rest = w.buffer[:had+n]
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		w.ended, err = true, nil
	}
	return err
}

func (w *window) skip(n int) {
	w.rest = w.rest[n:]
	w.at += int64(n)
}

// skipUnreadable skips what is before the next readable record, but at least one byte.
func (w *window) skipUnreadable() error {
	for first := 1; ; first = 0 {
		next := nextReadable(w.rest, first)
		if next < len(w.rest) || w.ended {
			w.skip(next)
			return nil
		}
		w.skip(max(first, len(w.rest)-maxFrame+1)) // it may begin in what is left
		if err := w.fill(); err != nil {
			return err
		}
	}
}

func readFrame(b []byte) (kind byte, record api.Record, rest []byte, err error) {
	payload, rest, err := nextFrame(b)
	if err == nil {
		kind, record, err = decode(payload)
	}
	return kind, record, rest, err
}

// nextReadable returns where the first readable record from byte `at` on begins, or the length of b.
func nextReadable(b []byte, at int) int {
	for ; at+frameHead+1 < len(b); at++ {
		if b[at+frameHead] != version { // a cheap check that excludes most places
			continue
		}
		if _, _, _, err := readFrame(b[at:]); err == nil {
			return at
		}
	}
	return len(b)
}
