package sched

import (
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	replayed       = flag.String("replay", "", "a CSV export of /api/admin/requests whose requests are run through the scheduler again")
	replayMachines = flag.Int("machines", 1, "backends of a replay")
	replaySlots    = flag.Int("slots", 4, "slots of each model on each of them")
	replayFaster   = flag.Float64("faster", 1, "by how much the requests of a replay come closer together")
)

// recordedJobs reads an export: when each request arrived, its key, its model, and how long it held its slot.
func recordedJobs(r io.Reader, faster float64) ([]job, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil || len(rows) == 0 {
		return nil, fmt.Errorf("no export: %w", err)
	}
	column := make(map[string]int)
	for i, name := range rows[0] {
		column[name] = i
	}
	for _, name := range []string{"at", "key", "model", "class", "slot_ms", "prompt_tokens", "completion_tokens"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("the export has no column %s", name)
		}
	}
	var all []job
	var first time.Time
	slices.Reverse(rows[1:]) // the newest come first
	for _, row := range rows[1:] {
		number := func(name string) float64 {
			n, _ := strconv.ParseFloat(row[column[name]], 64) // empty is none
			return n
		}
		if row[column["class"]] != "inference" || number("slot_ms") <= 0 {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, row[column["at"]])
		if err != nil {
			return nil, err
		}
		if at = at.Add(-time.Duration(queued(row, column) * float64(time.Millisecond))); first.IsZero() {
			first = at
		}
		all = append(all, job{
			at: max(0, time.Duration(float64(at.Sub(first))/faster)), key: row[column["key"]], weight: 1, model: row[column["model"]],
			prompt: number("prompt_tokens"), output: number("completion_tokens"), fixed: time.Duration(number("slot_ms") * float64(time.Millisecond)),
		})
	}
	slices.SortStableFunc(all, func(a, b job) int { return int(a.at - b.at) })
	return all, nil
}

// queued is how long a recorded request had waited when it was admitted, where its export says so.
func queued(row []string, column map[string]int) float64 {
	i, ok := column["queue_ms"]
	if !ok {
		return 0
	}
	n, _ := strconv.ParseFloat(row[i], 64)
	return n
}

// TestReplay runs recorded requests again: those of -replay, under the settings given, or a small export to see that it works.
func TestReplay(t *testing.T) {
	name := "testdata/requests.csv"
	if *replayed != "" {
		name = *replayed
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	jobs, err := recordedJobs(f, *replayFaster)
	if err != nil || len(jobs) == 0 {
		t.Fatalf("%s: %d requests, %v", name, len(jobs), err)
	}
	tr := &trace{name: name, seed: 1, machines: *replayMachines, slots: *replaySlots, length: jobs[len(jobs)-1].at + time.Minute, recorded: jobs}
	for _, policyName := range policies {
		r := simulate(t, tr, policyName)
		if len(r.all) != len(jobs) || r.most > tr.slots {
			t.Errorf("%s: %d of %d requests were served, %d at one time", policyName, len(r.all), len(jobs), r.most)
		}
		if *replayed != "" {
			fmt.Print(r.row())
			continue
		}
		if took := r.end; strings.HasPrefix(policyName, "fair") && took < jobs[len(jobs)-1].at {
			t.Errorf("the replay took %v", took)
		}
	}
}
