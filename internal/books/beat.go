package books

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// beatEvery is how often a process with running requests records that it is alive. After a kill, it limits the error of their estimated
// duration.
const beatEvery = time.Second

// inferenceClass is the api.Admission.Class of requests that hold a slot of a backend.
const inferenceClass = "inference"

func beatPath(dir string) string { return filepath.Join(dir, "alive") }

// writeBeat records the time. It only improves an estimate: if it fails, the last journal entry is used instead.
func writeBeat(dir string, now time.Time) {
	_ = os.WriteFile(beatPath(dir), strconv.AppendInt(nil, now.UnixMilli(), 10), 0o600)
}

// beat records the time if that is due.
func (b *Books) beat() {
	b.mu.Lock()
	now := b.o.Now()
	due := len(b.open) > 0 && now.Sub(b.journal.beat) >= beatEvery
	if due {
		b.journal.beat = now
	}
	b.mu.Unlock()
	if due {
		writeBeat(b.journal.dir, now)
	}
}

// lastBeat returns the time that the last process recorded, or zero.
func lastBeat(dir string) time.Time {
	text, err := os.ReadFile(beatPath(dir))
	if err != nil {
		return time.Time{}
	}
	ms, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
