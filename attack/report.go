//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"
)

// line is a result for the terminal.
func line(x *result) string {
	verdict := "held"
	if len(x.Missed) > 0 {
		verdict = "MISSED: " + strings.Join(x.Missed, "; ")
	}
	return fmt.Sprintf("%-4s %-18s %d  kept %.2f (need %.2f, noise %.2f)  p99 x%.1f  wait %s of %s  tokens %d/%d  gpu %.0f/%.0f ms  loads %d  cpu %.2f  peak %d MB  %d sent, %d answered  %s",
		x.Ollama, x.Attack, x.Attackers, x.Kept, x.Need, x.Noise, x.P99, short(x.Under.LongestWait), short(x.Bound), x.Booked, x.Evaluated, x.BookedGPU, x.GPU,
		x.Loads, x.CPU, x.Peak/1_000_000, x.Sent, x.Answered, verdict)
}

func short(d time.Duration) string {
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func table(results []result) string {
	var b strings.Builder
	for i := range results {
		b.WriteString(line(&results[i]) + "\n")
	}
	return b.String()
}

func updateProof(root string, results []result, took time.Duration) error { return nil }
