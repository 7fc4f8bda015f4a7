package books

import (
	"fmt"
	"os"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

// A killed request is never cheaper: its reserved tokens count, and the time up to the last beat is divided among the requests that ran.
func TestInterruptedRequestsKeepWhatWasHeld(t *testing.T) {
	dir := t.TempDir()
	now := noon
	o := still
	o.Now = func() time.Time { return now }
	var l ledger
	b := openLedger(t, dir, &l, &logBuffer{}, o)
	admit := func(id, backend, class string) {
		t.Helper()
		a := admission(id)
		a.At, a.Backend, a.Class, a.PromptEstimate, a.OutputEstimate = now, backend, class, 11, 4000
		if err := b.Admit(a, false); err != nil {
			t.Fatal(err)
		}
	}
	admit("first", "gpu1", "inference")
	admit("pull", "gpu1", "management")
	now = now.Add(10 * time.Second)
	admit("second", "gpu1", "inference")
	admit("other", "gpu2", "inference")
	now = now.Add(6 * time.Second)
	b.tidyJournal() // the last beat
	now = now.Add(beatEvery / 2)
	b.tidyJournal() // too soon for the next one
	abandon(b)

	now = now.Add(time.Hour)
	openLedger(t, dir, &l, &logBuffer{}, o)
	for id, want := range map[string]time.Duration{"first": 13 * time.Second, "second": 3 * time.Second, "other": 6 * time.Second, "pull": 0} {
		r := l.rows[id]
		got := fmt.Sprintln(r.Outcome, r.ReservedGPU, r.Reserved, int64(r.GPU), r.PromptTokens, r.CompletionTokens, r.Estimated)
		if want := fmt.Sprintln(api.OutcomeInterrupted, want, 4011, -1, 11, 0, true); got != want {
			t.Errorf("%s: %swant %s", id, got, want)
		}
	}
	if _, err := os.Stat(beatPath(journalDir(dir))); !os.IsNotExist(err) {
		t.Errorf("the beat of an imported journal still exists: %v", err)
	}
}

// Without a beat, the last journal entry counts. No clock makes any value negative.
func TestInterruptedWithoutASignOfLife(t *testing.T) {
	list := []api.Record{
		{Admission: api.Admission{ID: "b", At: noon.Add(8 * time.Second), Class: "inference"}},
		{Admission: api.Admission{ID: "a", At: noon, Class: "inference"}},
	}
	rows := interruptedRecords(list, noon.Add(-time.Hour))
	if rows[0].ID != "a" || rows[0].ReservedGPU != 8*time.Second || rows[1].ReservedGPU != 0 {
		t.Errorf("%+v", rows)
	}
}
