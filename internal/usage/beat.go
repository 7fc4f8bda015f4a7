package usage

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// beatEvery is how often a process with requests under way leaves a sign of life: after a kill, nobody can say closer than that for
// how long they ran.
const beatEvery = time.Second

// inferenceClass is api.Admission.Class of what holds a slot of a backend.
const inferenceClass = "inference"

func beatPath(dir string) string { return filepath.Join(dir, "alive") }

// writeBeat leaves the time. It is a help for an estimate: where it cannot be written, what was journalled last is the sign of life.
func writeBeat(dir string, now time.Time) {
	_ = os.WriteFile(beatPath(dir), strconv.AppendInt(nil, now.UnixMilli(), 10), 0o600)
}

// beat leaves a sign of life, if one is due.
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

// lastBeat is the time that the last process left; zero where it left none.
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
