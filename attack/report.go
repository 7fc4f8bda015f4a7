//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// line formats a result for the terminal.
func line(x *result) string {
	return fmt.Sprintf("%-4s %-13s %d | kept %.2f (CPU %.2f) of %.2f | p99 x%.1f | wait %5.1f of %5.1f s | tokens %7d of %7d | "+
		"gpu %6.0f of %6.0f ms | %s",
		x.Ollama, x.Attack, x.Attackers, x.Kept, x.KeptCPU, x.Need, x.P99, x.Under.LongestWait.Seconds(), x.Bound.Seconds(), x.Booked, x.Evaluated,
		x.BookedGPU, x.GPU, verdict(x))
}

func verdict(x *result) string {
	if len(x.Missed) > 0 {
		return "MISSED: " + strings.Join(x.Missed, "; ")
	}
	return "held"
}

// table returns all results in Markdown.
func table(results []result) string {
	var b strings.Builder
	b.WriteString("| attack | Ollama | attackers | victims keep | of Ollama's CPU | at least | noise | p99 | longest wait | bound | " +
		"tokens booked / evaluated | gpu_ms booked / evaluated | CPU | peak | |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range results {
		x := &results[i]
		mark, ofCPU := "", ""
		if x.KeptCPU > 0 {
			ofCPU = fmt.Sprintf("%.2f", x.KeptCPU)
		}
		if len(x.Missed) > 0 {
			mark = "missed"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %d | %.2f | %s | %.2f | %.2f | x%.1f | %.1f s | %.1f s | %d / %d | %.0f / %.0f | %.2f | %d MB | %s |\n",
			x.Attack, x.Ollama, x.Attackers, x.Kept, ofCPU, x.Need, x.Noise, x.P99, x.Under.LongestWait.Seconds(), x.Bound.Seconds(), x.Booked, x.Evaluated,
			x.BookedGPU, x.GPU, x.CPU, x.Peak/1_000_000, mark)
	}
	return b.String()
}

// missed lists the missed figures, one per line.
func missed(results []result) string {
	var b strings.Builder
	for _, x := range results {
		for _, why := range x.Missed {
			fmt.Fprintf(&b, "- `%s`, %s, %d attackers: %s\n", x.Attack, x.Ollama, x.Attackers, why)
		}
	}
	return b.String()
}

// The marks around the section in docs/proof.md. The catalogue of bad input has its own marks there.
const (
	proofBegins = "<!-- attacks -->\n"
	proofEnds   = "<!-- end of attacks -->"
)

func updateProof(root string, results []result, took time.Duration) error {
	file := filepath.Join(root, "docs", "proof.md")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	proof, err := withSection(string(text), results, took)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(proof), 0o644)
}

func withSection(text string, results []result, took time.Duration) (string, error) {
	before, rest, begins := strings.Cut(text, proofBegins)
	_, after, ends := strings.Cut(rest, proofEnds)
	if !begins || !ends {
		return "", fmt.Errorf("docs/proof.md has no place for the table: %q and %q", proofBegins, proofEnds)
	}
	var b strings.Builder
	b.WriteString(table(results))
	fmt.Fprintf(&b, "\n%d attacks in %s on %d processors. ", len(results), took.Round(time.Second), runtime.NumCPU())
	if m := missed(results); m != "" {
		b.WriteString("Missed:\n\n" + m)
	} else {
		b.WriteString("No figure was missed.\n")
	}
	return before + proofBegins + b.String() + proofEnds + after, nil
}
