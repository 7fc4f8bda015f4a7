package sched

import (
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// jain is the index of Jain, Chiu and Hawe (1984): 1 where all have the same, 1/n where one of n has everything.
func jain(shares []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, x := range shares {
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / float64(len(shares)) / squares
}

// fairness is Jain's index of the service, over their weights, of the keys that wait throughout a window: the lowest and the mean of
// all windows with two such keys or more. apart is the largest difference of service over weight between two of them.
func (r *result) fairness() (lowest, mean float64, apart time.Duration, windows int) {
	byKey := make(map[string][]jobResult)
	for _, s := range r.all {
		byKey[s.key] = append(byKey[s.key], s)
	}
	lowest = 1
	window := r.trace.window
	if window == 0 {
		window = 30 * time.Minute
	}
	for from := time.Duration(0); from+window <= r.trace.length; from += 10 * time.Minute {
		to := from + window
		var shares []float64
		for _, list := range byKey {
			if !backlogged(list, from, to) {
				continue
			}
			service := time.Duration(0)
			for _, s := range list {
				service += max(0, min(s.to, to)-max(s.from, from))
			}
			shares = append(shares, service.Seconds()/list[0].weight)
		}
		if len(shares) < 2 {
			continue
		}
		j := jain(shares)
		lowest = min(lowest, j)
		mean += j
		apart = max(apart, time.Duration((slices.Max(shares)-slices.Min(shares))*float64(time.Second)))
		windows++
	}
	if windows > 0 {
		mean /= float64(windows)
	}
	return lowest, mean, apart, windows
}

// backlogged reports whether at every instant from..to some request of the list waits.
func backlogged(list []jobResult, from, to time.Duration) bool {
	type span struct{ from, to time.Duration }
	var waits []span
	for _, s := range list {
		if s.at < to && s.from > from {
			waits = append(waits, span{s.at, s.from})
		}
	}
	slices.SortFunc(waits, func(a, b span) int { return int(a.from - b.from) })
	covered := from
	for _, w := range waits {
		if w.from > covered {
			return false
		}
		covered = max(covered, w.to)
	}
	return covered >= to
}

// waits are the q-quantile of how long requests of keys with that prefix waited.
func (r *result) waits(prefix string, q float64) time.Duration {
	var list []time.Duration
	for _, s := range r.all {
		if strings.HasPrefix(s.key, prefix) {
			list = append(list, s.wait)
		}
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(q*float64(len(list))), len(list)-1)]
}

// throughput is tokens per second that were served while the trace lasted.
func (r *result) throughput() float64 {
	tokens := 0.0
	for _, s := range r.all {
		if s.to <= r.trace.length && !s.failed {
			tokens += s.prompt + s.output
		}
	}
	return tokens / r.trace.length.Seconds()
}

func (r *result) failures() (n int) {
	for _, s := range r.all {
		if s.failed {
			n++
		}
	}
	return n
}

var (
	everything = flag.Bool("everything", false, "simulate all traces under all policies, and write docs/fairness.md and its plot")
	policies   = []string{"fair", "fifo", "round-robin", "greedy"}
)

// TestSimulation holds the scheduler to what docs/fairness.md promises of it, on the fixed traces: on some of them, or with -everything
// on all.
func TestSimulation(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	var table strings.Builder
	table.WriteString("| trace | policy | Jain, lowest and mean | furthest apart | wait p50 | wait p99 | light keys' p99 | changes | tokens/s |\n|---|---|---|---|---|---|---|---|---|\n")
	plot := make(map[string]*result)
	for _, tr := range traces() {
		if !*everything && !tr.short {
			continue
		}
		results := make(map[string]*result)
		for _, name := range policies {
			if !*everything && name != "fair" && name != "fifo" {
				continue
			}
			r := simulate(t, tr, name)
			results[name] = r
			table.WriteString(r.row())
			if tr.plotted {
				plot[name] = r
			}
		}
		promised(t, results["fair"], results["fifo"])
	}
	if *everything {
		document(t, table.String(), plot)
	}
}

// Batch keys get no more than their weight gives them next to busy interactive keys, in time and not in requests.
func TestBatchTakesWhatOthersLeave(t *testing.T) {
	for _, tr := range batchTraces() {
		r := simulate(t, tr, "fair")
		var ofBatch, all, longest time.Duration
		for _, s := range r.all {
			if s.to > tr.length {
				continue
			}
			all += s.held
			if s.batch {
				longest = max(longest, s.held)
				ofBatch += s.held
			}
		}
		weight := tr.patterns[1].weight
		share, own := ofBatch.Seconds()/all.Seconds(), weight/(10+weight)
		// Two counters differ by at most two of the longest requests (theorem 4.4 of the paper on the Virtual Token Counter).
		most := 1.05*own + 2*longest.Seconds()/all.Seconds()
		t.Logf("%s: %.4f of the time, its weight gives it %.4f", tr.name, share, own)
		if share > most || share < 0.5*own {
			t.Errorf("%s: the batch key has %.4f of the time, want %.4f to %.4f", tr.name, share, 0.5*own, most)
		}
	}
}

// promised are the figures that hold on every trace.
func promised(t *testing.T, fairResult, fifo *result) {
	t.Helper()
	name := fairResult.trace.name
	if lowest, _, apart, windows := fairResult.fairness(); windows > 0 && (lowest < 0.95 || apart > fairResult.apart()) {
		t.Errorf("%s: Jain's index of the keys that wait is %.3f, and two are %v apart, where %v are allowed", name, lowest, apart, fairResult.apart())
	}
	if fairResult.throughput() < 0.97*fifo.throughput() {
		t.Errorf("%s: %.1f tokens per second, first come first served has %.1f", name, fairResult.throughput(), fifo.throughput())
	}
	if strings.HasPrefix(name, "two models") && fairResult.changes*3 > fifo.changes {
		t.Errorf("%s: %d changes of model, first come first served has %d", name, fairResult.changes, fifo.changes)
	}
	if light := fairResult.waits("light", 0.99); 10*light > fifo.waits("light", 0.99) {
		t.Errorf("%s: a light key's p99 is %v, first come first served it is %v", name, light, fifo.waits("light", 0.99))
	}
	if fairResult.most > fairResult.trace.slots {
		t.Errorf("%s: %d requests at one time on %d slots", name, fairResult.most, fairResult.trace.slots)
	}
	if fairResult.wrong > 0 || fairResult.failures() > 0 {
		t.Errorf("%s: %d requests went where their model was not, %d failed", name, fairResult.wrong, fairResult.failures())
	}
}

func (r *result) row() string {
	lowest, mean, apart, windows := r.fairness()
	index, distance := "no long waits", ""
	if windows > 0 {
		index, distance = fmt.Sprintf("%.3f, %.3f", lowest, mean), fmt.Sprintf("%.0f s", apart.Seconds())
		if r.policy == "fair" {
			distance += fmt.Sprintf(" (bound %.0f s)", r.apart().Seconds())
		}
	}
	light := ""
	if w := r.waits("light", 0.99); w > 0 {
		light = inSeconds(w)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %d | %.0f |\n", r.trace.name, r.policy, index, distance,
		inSeconds(r.waits("", 0.5)), inSeconds(r.waits("", 0.99)), light, r.changes, r.throughput())
}

// apart is the bound of docs/fairness.md for how far the service of two keys that wait can be apart, over their weights.
func (r *result) apart() time.Duration {
	longest := time.Duration(0)
	models := make(map[string]bool)
	for _, s := range r.all {
		longest = max(longest, s.to-s.from)
		models[s.model] = true
	}
	slots := time.Duration(r.trace.machines * r.trace.slots)
	bound := 2 * slots * longest
	return bound + time.Duration(len(models)-1)*slots*(stint*changing+changing+longest)
}

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// document puts the table between its marks and draws the plot.
func document(t *testing.T, table string, plot map[string]*result) {
	const page, begin, end = "../../docs/fairness.md", "<!-- simulated -->\n", "<!-- end of simulated -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, also := strings.Cut(rest, end)
	if !ok || !also {
		t.Fatalf("%s has no marks for the table", page)
	}
	if err := os.WriteFile(page, []byte(before+begin+table+end+after), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("../../docs/fairness.svg", []byte(draw(plot)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// draw plots the waits of the light keys in the order of arrival, under each policy, on a logarithmic scale.
func draw(plot map[string]*result) string {
	const width, height, left, bottom = 860, 420, 60, 40
	colours := map[string]string{"fair": "#0a7d33", "fifo": "#c0392b", "round-robin": "#2e6da4"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	x := func(at, length time.Duration) float64 { return left + (width-left-20)*at.Seconds()/length.Seconds() }
	y := func(wait float64) float64 { // from 0.1 s to 20,000 s
		return height - bottom - (height-bottom-30)*(math.Log10(max(wait, 0.1))+1)/(math.Log10(20_000)+1)
	}
	for _, mark := range []float64{0.1, 1, 10, 100, 1000, 10_000} {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g s</text>`+"\n", left, y(mark), width-20, left-6, y(mark)+4, mark)
	}
	row := 0
	for _, name := range []string{"fifo", "round-robin", "fair"} {
		r := plot[name]
		if r == nil {
			continue
		}
		fmt.Fprintf(&b, `<path stroke="%s" stroke-opacity="0.6" stroke-width="2.4" stroke-linecap="round" d="`, colours[name])
		for i, s := range r.all {
			if i%5 == 0 && strings.HasPrefix(s.key, "light") {
				fmt.Fprintf(&b, "M%.0f %.0fh0", x(s.at, r.trace.length), y(s.wait.Seconds()))
			}
		}
		b.WriteString(`"/>` + "\n")
		fmt.Fprintf(&b, `<text x="%d" y="18" fill="%s">%s</text>`+"\n", left+row*110, colours[name], name)
		row++
	}
	for h := range 5 {
		at := time.Duration(h) * time.Hour
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d h</text>`+"\n", x(at, 4*time.Hour), height-bottom+18, h)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">How long each request of ten light keys waits, by when it comes: bursts of four heavy keys, twice the load that can be served</text>`+"\n</svg>\n", left, height-6)
	return b.String()
}
