package sched

import (
	"fmt"
	"strings"
	"time"
)

// traces are those of docs/fairness.md.
func traces() []*trace {
	var all []*trace
	add := func(tr trace) {
		tr.seed = uint64(len(all)) + 1
		tr.short = tr.load == 1 && tr.machines < 3
		tr.plotted = tr.load == 2 && strings.HasPrefix(tr.name, "bursts")
		all = append(all, &tr)
	}
	a, ab, abcd := []string{"a"}, []string{"a", "b"}, []string{"a", "b", "c", "d"}
	for _, load := range []float64{0.7, 1, 2} {
		name := func(s string) string { return fmt.Sprintf("%s, load %.1f", s, load) }
		add(trace{name: name("a heavy and a light key"), machines: 1, slots: 4, load: load, length: 4 * time.Hour, patterns: []keyPattern{
			{name: "heavy", keys: 1, share: 0.95, models: a, burst: 20}, {name: "light", keys: 1, share: 0.05, models: a},
		}})
		add(trace{name: name("20 keys"), machines: 2, slots: 4, load: load, length: 4 * time.Hour, patterns: []keyPattern{
			{name: "key", keys: 20, share: 1, models: a},
		}})
		add(trace{name: name("bursts and ten light keys"), machines: 2, slots: 4, load: load, length: 4 * time.Hour, patterns: []keyPattern{
			{name: "burst", keys: 4, share: 0.7, models: a, burst: 50}, {name: "light", keys: 10, share: 0.3, models: a},
		}})
		add(trace{name: name("weights 1, 2 and 4"), machines: 1, slots: 4, load: load, length: 4 * time.Hour, patterns: []keyPattern{
			{name: "one", keys: 3, share: 0.34, models: a}, {name: "two", keys: 3, share: 0.33, models: a, weight: 2}, {name: "four", keys: 3, share: 0.33, models: a, weight: 4},
		}})
		add(trace{name: name("two models, one backend"), machines: 1, slots: 4, load: load, length: 8 * time.Hour, patterns: []keyPattern{
			{name: "key", keys: 6, share: 1, models: ab},
		}})
		add(trace{name: name("two models, two backends"), machines: 2, slots: 4, load: load, length: 8 * time.Hour, patterns: []keyPattern{
			{name: "mix", keys: 6, share: 0.5, models: ab}, {name: "a", keys: 3, share: 0.25, models: a}, {name: "b", keys: 3, share: 0.25, models: []string{"b"}},
		}})
		add(trace{name: name("1000 keys, four models"), machines: 8, slots: 4, load: load, length: 3 * time.Hour, window: 150 * time.Minute, patterns: []keyPattern{
			{name: "key", keys: 990, share: 0.5, models: abcd}, {name: "heavy", keys: 10, share: 0.5, models: abcd, burst: 10},
		}})
		add(trace{name: name("failing backends"), machines: 3, slots: 4, load: load, length: 4 * time.Hour, failing: true, patterns: []keyPattern{
			{name: "key", keys: 20, share: 1, models: a},
		}})
	}
	return all
}

// batchTraces are those in which batch keys meet ten busy interactive ones, with weights and lengths of requests far apart.
func batchTraces() []*trace {
	var all []*trace
	for _, weight := range []float64{0.1, 1} {
		for _, output := range [][2]float64{{150, 150}, {150, 600}, {600, 150}} {
			all = append(all, &trace{
				name: fmt.Sprintf("batch of weight %.1f, answers of %.0f tokens next to %.0f", weight, output[1], output[0]), seed: 1,
				machines: 1, slots: 4, length: 2 * time.Hour, maxWait: 4 * time.Minute,
				patterns: []keyPattern{
					{name: "person", keys: 10, closed: 4, output: output[0], models: []string{"a"}},
					{name: "batch", keys: 1, closed: 20, output: output[1], models: []string{"a"}, batch: true, weight: weight},
				},
			})
		}
	}
	return all
}
