package e2e

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var updateProof = flag.Bool("update-proof", false, "write the table of bad input into docs/proof.md")

// elsewhere lists the numbers that no request on a socket can show in acceptable time, and the tests that show them.
var elsewhere = map[int]string{
	14: noLook, 15: noLook, 16: noLook, 17: noLook, 18: noLook, 19: noLook, 20: noLook, 21: noLook,
	52: "408 after 30 s without progress; tested with a simulated clock by `TestABodyThatStops` (internal/server)",
}

// lastNumber is the last number of the catalogue that is tested here. B104 is about HTTP/2; the numbers after B116 are about repeats and
// settings.
const lastNumber = 116

const noLook = "the database is not read: `TestABadKeyNeverReachesTheDatabase` (internal/server)"

// checkProof compares the table in docs/proof.md with the rows.
func checkProof(t *testing.T, all []row) {
	t.Helper()
	const file, from, to = "../docs/proof.md", "<!-- bad input -->\n", "<!-- end of bad input -->"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), from)
	old, after, end := strings.Cut(rest, to)
	if !ok || !end {
		t.Fatalf("%s lacks the markers of the table", file)
	}
	table := proofTable(t, all)
	if *updateProof {
		if err := os.WriteFile(file, []byte(before+from+table+to+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != table {
		t.Errorf("docs/proof.md differs from this test: run go test ./e2e -run TestBadInput -update-proof")
	}
}

func proofTable(t *testing.T, all []row) string {
	t.Helper()
	type line struct {
		title, notes string
		n            int
		statuses     []string
	}
	lines := map[int]*line{}
	for _, r := range all {
		title, _, _ := strings.Cut(r.name, ": ")
		number, title, _ := strings.Cut(title, " ")
		n, err := strconv.Atoi(strings.TrimPrefix(number, "B"))
		if err != nil {
			t.Fatalf("%q has no number", r.name)
		}
		l := lines[n]
		if l == nil {
			l = &line{title: title}
			lines[n] = l
		}
		if l.title != title {
			t.Errorf("B%d is called %q and %q", n, l.title, title)
		}
		l.n++
		status := strconv.Itoa(r.want)
		if r.by == nethttp {
			status += " (net/http)"
		}
		if r.ends {
			status += ", closed"
		}
		if !slices.Contains(l.statuses, status) {
			l.statuses = append(l.statuses, status)
		}
		if r.why != "" && !strings.Contains(l.notes, r.why) {
			l.notes = strings.TrimPrefix(l.notes+"; "+r.why, "; ")
		}
	}
	var b strings.Builder
	b.WriteString("| | input | requests | answers | note |\n|---|---|---|---|---|\n")
	for n := 1; n <= lastNumber; n++ {
		l := lines[n]
		if n == 104 {
			continue
		}
		if l == nil {
			t.Errorf("B%d has no test", n)
			continue
		}
		notes := strings.TrimPrefix(strings.TrimSuffix(l.notes+"; "+elsewhere[n], "; "), "; ")
		slices.Sort(l.statuses)
		fmt.Fprintf(&b, "| B%d | %s | %d | %s | %s |\n", n, strings.ReplaceAll(l.title, "|", "\\|"), l.n, strings.Join(l.statuses, "; "), notes)
	}
	return b.String()
}
