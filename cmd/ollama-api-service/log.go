package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ollama-api-service/internal/config"
)

const (
	logDelay = 100 * time.Millisecond // how long a line may wait to be written together with others
	logChunk = 32 << 10               // the number of bytes that is written without further waiting
	logBound = 1 << 20                // the most bytes that wait while the reader of the log does not read
	// logEnd is how long the reader of the log may take for the last lines at shutdown.
	logEnd = 2 * time.Second
)

// newLogger writes JSON or text lines to out, through a lineWriter.
func newLogger(cfg *config.Config, out io.Writer) (*slog.Logger, *lineWriter) {
	handler := func(out io.Writer, level slog.Leveler) slog.Handler {
		if cfg.LogFormat == config.LogText {
			return slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})
		}
		return slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})
	}
	w := newLineWriter(out, handler(out, nil))
	w.level.Set(cfg.LogLevel)
	if cfg.LogFormat == config.LogText {
		return slog.New(handler(w, &w.level)), w
	}
	return slog.New(plainLines{handler(w, &w.level), w}), w
}

// lineWriter accepts lines without blocking: a goroutine of its own writes them to out. If out blocks, because its reader does not read
// or its disk is full, lines wait up to logBound. Then whole lines are dropped and counted, because a request must not wait for a log.
// Lines are collected for a moment and written together: one write for each request would cost it 2 µs.
type lineWriter struct {
	level slog.LevelVar
	out   io.Writer
	// report writes the line about lost lines directly to out.
	report slog.Handler

	wake, hurry chan struct{} // there are lines; they are to be written at once
	stop, ended chan struct{}
	lost        atomic.Int64 // lines, since the start

	mu      sync.Mutex
	buf     []byte
	dropped int64 // lines, since buf was last taken

	// Only the writing goroutine uses these.
	spare      []byte
	torn       bool  // out has the beginning of a line whose end was lost
	unreported int64 // lost lines that the log does not mention yet
}

func newLineWriter(out io.Writer, report slog.Handler) *lineWriter {
	w := &lineWriter{
		out: out, report: report,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go w.run()
	return w
}

// Write takes one line.
func (w *lineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	before := len(w.buf)
	if before+len(line) > logBound {
		w.dropped++
		w.lost.Add(1)
	} else {
		w.buf = append(w.buf, line...)
	}
	after := len(w.buf)
	w.mu.Unlock()
	if before == 0 {
		signalTo(w.wake)
	}
	if before < logChunk && after >= logChunk {
		signalTo(w.hurry)
	}
	return len(line), nil
}

// flush starts writing the lines without the usual delay. It does not wait for the end of the write.
func (w *lineWriter) flush() { signalTo(w.hurry) }

// close writes the waiting lines, for at most logEnd. Later lines are lost.
func (w *lineWriter) close() {
	close(w.stop)
	timer := time.NewTimer(logEnd)
	defer timer.Stop()
	select {
	case <-w.ended:
	case <-timer.C:
	}
}

func (w *lineWriter) run() {
	defer close(w.ended)
	for {
		select {
		case <-w.wake:
		case <-w.stop:
			w.writeOut()
			return
		}
		delay := time.NewTimer(logDelay)
		select {
		case <-delay.C:
		case <-w.hurry:
		case <-w.stop:
		}
		delay.Stop()
		w.writeOut()
	}
}

// writeOut writes the waiting lines. If out accepts them, it then writes how many lines were lost before.
func (w *lineWriter) writeOut() {
	w.mu.Lock()
	chunk, dropped := w.buf, w.dropped
	w.buf, w.dropped = w.spare[:0], 0
	w.mu.Unlock()
	if w.spare = chunk[:0]; cap(chunk) > 4*logChunk {
		w.spare = nil // do not keep the size that it grew to while out was blocked
	}
	taken := w.put(chunk)
	if w.unreported += dropped; taken && w.unreported > 0 {
		w.reportLost()
	}
}

// put writes whole lines and reports whether out took all of them.
func (w *lineWriter) put(lines []byte) bool {
	if len(lines) == 0 {
		return true
	}
	if w.torn {
		if _, err := w.out.Write([]byte("\n")); err != nil {
			w.miss(lines)
			return false
		}
		w.torn = false
	}
	last := byte('\n')
	for {
		n, err := w.out.Write(lines)
		if n = max(0, min(n, len(lines))); n > 0 {
			last, lines = lines[n-1], lines[n:]
		}
		switch {
		case err == nil:
			return true
		case errors.Is(err, syscall.EAGAIN):
			// Another program made the shared stream non-blocking, and it is full.
			time.Sleep(logDelay)
		default:
			w.torn = last != '\n'
			w.miss(lines)
			return false
		}
	}
}

// miss counts lines that out did not accept. They are reported with the next lines that it accepts.
func (w *lineWriter) miss(lines []byte) {
	n := int64(bytes.Count(lines, []byte("\n")))
	w.unreported += n
	w.lost.Add(n)
}

func (w *lineWriter) reportLost() {
	const message = "lines of the log were lost, because the reader of standard output did not read them: check where standard output goes"
	r := slog.NewRecord(time.Now(), slog.LevelWarn, message, 0)
	r.AddAttrs(slog.Int64("lines", w.unreported))
	if w.report.Handle(context.Background(), r) == nil {
		w.unreported = 0
	}
}

// signalTo puts a signal into c, which has room for one, unless c is full.
func signalTo(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// boundedWriter writes to a stream that may have no reader, such as standard error on a pipe. A write that takes longer than wait fails,
// and so does each later one. The blocked write stays in its goroutine until the process ends.
type boundedWriter struct {
	out  io.Writer
	wait time.Duration
	mu   sync.Mutex
	late bool
}

var errNotRead = errors.New("nothing reads it")

// Write writes all of p, or fails.
func (w *boundedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.late {
		return 0, errNotRead
	}
	var written int
	var failure error
	text, done := bytes.Clone(p), make(chan struct{})
	go func() {
		defer close(done)
		written, failure = w.out.Write(text)
	}()
	timer := time.NewTimer(w.wait)
	defer timer.Stop()
	select {
	case <-done:
		return written, failure
	case <-timer.C:
		w.late = true
		return 0, errNotRead
	}
}
