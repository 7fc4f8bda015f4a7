package sched

import (
	"fmt"
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
	byKey := make(map[string][]served)
	for _, s := range r.all {
		byKey[s.key] = append(byKey[s.key], s)
	}
	lowest = 1
	window := r.trace.window
	if window == 0 {
		window = 30 * time.Minute
	}
	for from := time.Duration(0); from+window <= r.trace.length; from += window / 2 {
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

// backlogged says whether at every instant from..to some request of the list waits.
func backlogged(list []served, from, to time.Duration) bool {
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

// TestSimulation prints what each trace comes to.
func TestSimulation(t *testing.T) {
	for _, tr := range traces() {
		t.Run(tr.name, func(t *testing.T) {
			for _, name := range []string{"fair", "fifo", "greedy", "round-robin"} {
				from := time.Now()
				r := simulate(t, tr, name)
				low, mean, apart, n := r.fairness()
				fmt.Printf("%-28s %-12s %6d jobs  jain %.3f %.3f (%d) apart %6.0fs  p50 %7.1f p99 %7.1f  light p99 %7.1f  changes %4d  tok/s %7.1f  wrong %d failed %d most %d (%v)\n", tr.name, name, len(r.all), low, mean, n, apart.Seconds(),
					r.waits("", 0.5).Seconds(), r.waits("", 0.99).Seconds(), r.waits("light", 0.99).Seconds(), r.changes, r.throughput(), r.wrong, r.failures(), r.most, time.Since(from).Round(10*time.Millisecond))
			}
		})
	}
}
