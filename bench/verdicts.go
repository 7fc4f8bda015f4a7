//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// goal is a target for a figure of the service: at most bound, as an absolute value, as a ratio to the same figure of another
// contestant (of), or as a ratio to another figure of the service (ofRow).
type goal struct {
	row       string
	bound     float64
	of, ofRow string
	aim       float64 // the ratio beyond the target that is aimed at; 0 for none
}

// goals are the targets in the order of their table.
func goals() (all []goal) {
	for _, v := range variants() {
		all = append(all, goal{row: v.row(), of: reverse, bound: 0.65, aim: 0.5}, goal{row: v.row(), of: nginx, bound: 2.5})
		if v.keys > 1 {
			one := v
			one.keys = 1
			all = append(all, goal{row: v.row(), ofRow: one.row(), bound: 1.2})
		}
	}
	all = append(all,
		goal{row: chunkCPU, of: nginx, bound: 1.2, aim: 1.1},
		goal{row: firstByte, of: nginx, bound: 1.5},
		goal{row: idleStream, bound: 40},
		goal{row: steadyTail, of: nginx, bound: 1.5},
		goal{row: steadyMemory, bound: 24},
		goal{row: manyErrors, bound: 0},
	)
	for _, l := range []large{image, prompt} {
		// 1.2 copies of the body.
		all = append(all, goal{row: l.cpu(), of: nginx, bound: 1.5}, goal{row: l.memory(), bound: 1.2 * float64(l.size) / (1 << 20)})
	}
	return all
}

// got returns what was measured for the goal.
func (g goal) got(f figures) (float64, bool) {
	switch {
	case g.of != "":
		return f.quotient(g.row, service, g.of)
	case g.ofRow != "":
		a, ok := f.median(g.row, service)
		b, ok2 := f.median(g.ofRow, service)
		return a / max(b, 1e-9), ok && ok2
	default:
		return f.median(g.row, service)
	}
}

func (g goal) text() string {
	switch {
	case g.of != "":
		return fmt.Sprintf("at most %g of %s", g.bound, g.of)
	case g.ofRow != "":
		return fmt.Sprintf("at most %g of “%s”", g.bound, g.ofRow)
	default:
		return "at most " + number(g.bound)
	}
}

// verdicts writes the targets and whether they were reached.
func verdicts(p func(string, ...any), f figures, sustained []endured) {
	p("## Targets\n\n| figure of the service | target | measured | |\n|---|---|---|---|\n")
	line := func(row, target, measured string, ok, reached bool, aim string) {
		verdict := "not measured"
		switch {
		case ok && reached:
			verdict = "reached" + aim
		case ok:
			verdict = "**missed**"
		}
		p("| %s | %s | %s | %s |\n", row, target, measured, verdict)
	}
	for _, g := range goals() {
		got, ok := g.got(f)
		measured, aim := "", ""
		if ok {
			measured = fmt.Sprintf("%.2f", got)
		}
		if g.aim > 0 && got > g.aim {
			aim = fmt.Sprintf("; the aim is %g", g.aim)
		}
		line(g.row, g.text(), measured, ok, got <= g.bound, aim)
	}
	most, ok := lost(sustained)
	measured := ""
	if ok {
		measured = strconv.Itoa(most)
	}
	line("rows lost under sustained full load", "0", measured, ok, most == 0, "")
	p("\n")
}

// worse is the share from which on a figure counts as a regression against the commit before.
const worse = 0.05

// regressions writes the figures of the service that are worse than those of the commit before, with their reasons.
func regressions(p func(string, ...any), f figures, against string, reasons map[string]string) {
	if against == "" {
		return
	}
	p("## Against the commit before\n\nThe same run also measured the service built from %s.\n", against)
	var lines []string
	for _, row := range compared() {
		q, ok := f.quotient(row, service, before)
		if !ok || slices.Contains(neutral, row) {
			continue
		}
		if slices.Contains(higher, row) {
			q = 1 / q
		}
		if q <= 1+worse {
			continue
		}
		reason := reasons[row]
		if reason == "" {
			reason = "**no reason is given**"
			if slices.Min(f[row][service]) <= slices.Max(f[row][before]) && slices.Min(f[row][before]) <= slices.Max(f[row][service]) {
				reason += " (the rounds of both overlap)"
			}
		}
		lines = append(lines, fmt.Sprintf("- %s: %.0f %% worse: %s\n", row, 100*(q-1), reason))
	}
	if len(lines) == 0 {
		p("No figure is worse by more than %.0f %%.\n\n", 100*worse)
		return
	}
	p("Worse by more than %.0f %%:\n\n%s\n", 100*worse, strings.Join(lines, ""))
}

// readReasons reads the reasons for regressions: lines of "FIGURE = reason". A line that begins with # is a comment.
func readReasons(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	reasons := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		row, reason, ok := strings.Cut(line, " = ")
		if !ok || !slices.Contains(compared(), row) {
			return nil, fmt.Errorf("%s: %q is not of the form FIGURE = reason, with a figure of the table in RESULTS.md", file, line)
		}
		reasons[row] = reason
	}
	return reasons, nil
}
