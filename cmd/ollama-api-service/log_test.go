package main

import (
	"bytes"
	"strings"
	"sync"
	"syscall"
	"testing"

	"ollama-api-service/internal/config"
)

// volume accepts room more bytes and then fails with cause.
type volume struct {
	mu    sync.Mutex
	text  bytes.Buffer
	room  int
	cause error
	tried chan struct{} // one for each incomplete write
}

func (d *volume) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.room)
	d.room -= n
	d.text.Write(p[:n])
	if n < len(p) {
		select {
		case d.tried <- struct{}{}:
		default:
		}
		return n, d.cause
	}
	return n, nil
}

func (d *volume) give(room int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = room
}

// A disk becomes full in the middle of a line and later has room again. That line is lost, the next one starts on a new line, and the log
// reports the number of lost lines.
func TestALogOnAFullDisk(t *testing.T) {
	d := &volume{room: 100, cause: syscall.ENOSPC, tried: make(chan struct{}, 1)}
	log, w := newLogger(&config.Config{LogFormat: config.LogJSON}, d)
	for i := range 5 {
		log.Info("line", "n", i, "padding", strings.Repeat("x", 60))
	}
	w.flush()
	<-d.tried
	d.give(1 << 20)
	log.Info("after")
	w.close()
	got := strings.Split(strings.TrimSuffix(d.text.String(), "\n"), "\n")
	last := got[len(got)-1]
	if !strings.Contains(last, "were lost") || !strings.Contains(last, `"lines":5`) {
		t.Errorf("the last line is %s, want one that says that 5 lines were lost", last)
	}
	if after := got[len(got)-2]; !strings.HasPrefix(after, `{"time"`) || !strings.Contains(after, `"msg":"after"`) {
		t.Errorf("the next line is %s, want it whole", after)
	}
	if n := w.lost.Load(); n != 5 {
		t.Errorf("%d lines are counted as lost, want 5", n)
	}
}

// A program that shares the stream can make it non-blocking. A full stream is then not a failure, and no line is lost.
func TestALogOnANonBlockingStream(t *testing.T) {
	d := &volume{room: 30, cause: syscall.EAGAIN, tried: make(chan struct{}, 1)}
	log, w := newLogger(&config.Config{LogFormat: config.LogText}, d)
	log.Info("a line that fits only in part")
	w.flush()
	<-d.tried
	d.give(1 << 20)
	w.close()
	if got := d.text.String(); w.lost.Load() != 0 || strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "fits only in part\"\n") {
		t.Errorf("%d lines are lost, and the log is %q", w.lost.Load(), got)
	}
}

// A line larger than the whole buffer is dropped and reported.
func TestALineThatIsTooLong(t *testing.T) {
	d := &volume{room: 1 << 20}
	log, w := newLogger(&config.Config{LogFormat: config.LogText}, d)
	log.Info(strings.Repeat("x", logBound))
	log.Info("short")
	w.close()
	if got := d.text.String(); w.lost.Load() != 1 || !strings.Contains(got, "msg=short\n") || !strings.Contains(got, "lines=1\n") {
		t.Errorf("%d lines are lost, and the log is %q", w.lost.Load(), got)
	}
}
