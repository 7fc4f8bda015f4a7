package main

import (
	"io"
	"log/slog"
	"sync"
	"time"

	"ollama-api-service/internal/config"
)

const (
	logDelay  = 100 * time.Millisecond // how long a line may wait for others to be written with it
	logBuffer = 32 << 10
)

// newLogger writes JSON or text lines to out. Close writes what still waits.
func newLogger(cfg *config.Config, out io.Writer) (log *slog.Logger, flush func()) {
	lines := &lineWriter{out: out, buf: make([]byte, 0, logBuffer)}
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == config.LogText {
		return slog.New(slog.NewTextHandler(lines, options)), lines.flush
	}
	return slog.New(slog.NewJSONHandler(lines, options)), lines.flush
}

// lineWriter gathers lines for a moment and writes them in one go: a write for each request would cost it 2 us. What a kill
// may take with it are lines of the log alone; the books have a journal.
type lineWriter struct {
	out io.Writer

	mu      sync.Mutex
	buf     []byte
	waiting bool
}

func (w *lineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf)+len(line) > logBuffer {
		w.flushLocked()
	}
	w.buf = append(w.buf, line...)
	if !w.waiting {
		w.waiting = true
		time.AfterFunc(logDelay, w.flush)
	}
	return len(line), nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = false
	w.flushLocked()
}

func (w *lineWriter) flushLocked() {
	if len(w.buf) == 0 {
		return
	}
	// A log that cannot be written has nowhere to say so, and must not keep requests from being served.
	_, _ = w.out.Write(w.buf)
	w.buf = w.buf[:0]
}
