package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/clients.md from the results of TestClients")

// tableStart is the first line of the generated part of docs/clients.md.
const tableStart = "<!-- From here on the file is written by \"make clients\" from what the tests saw. -->\n"

// checkClientTable compares docs/clients.md with this run.
func checkClientTable(t *testing.T, programs []program, outcomes [][]outcome) {
	t.Helper()
	path := filepath.Join("..", "docs", "clients.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, have, ok := strings.Cut(string(text), tableStart)
	if !ok {
		t.Fatalf("%s lacks the line %q", path, tableStart)
	}
	want := clientTables(programs, outcomes)
	if *update {
		if err := os.WriteFile(path, []byte(head+tableStart+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	haveLines, wantLines := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i, line := range wantLines {
		if i >= len(haveLines) || haveLines[i] != line {
			t.Errorf("docs/clients.md differs from what the clients do: run \"make clients\" and check the changes. The first difference is\n%s\nwant\n%s",
				strings.Join(haveLines[min(i, len(haveLines)):min(i+1, len(haveLines))], ""), line)
			return
		}
	}
	if len(haveLines) > len(wantLines) {
		t.Errorf("docs/clients.md has lines after its end: run \"make clients\"")
	}
}

// clientTables returns a table for each client.
func clientTables(programs []program, outcomes [][]outcome) string {
	var b strings.Builder
	b.WriteString("\n## What was tried, and what the user of each client sees\n\n| Client | Version | Calls | Cases |\n|---|---|---|---|\n")
	cases := 0
	for i, p := range programs {
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %d | %d |\n", p.name, anchor(p.name), p.version, len(p.calls), len(outcomes[i]))
		cases += len(outcomes[i])
	}
	fmt.Fprintf(&b, "\n%d cases in all. Where a row says \"all\" it means all calls that can get there: only a call that names a model can name a\n"+
		"hidden one, and only one that counts can meet a limit.\n", cases)
	for i, p := range programs {
		fmt.Fprintf(&b, "\n### %s\n\nVersion: %s. Calls:", p.name, p.version)
		var calls []string
		for _, a := range p.calls {
			calls = append(calls, a.name)
		}
		fmt.Fprintf(&b, " %s.\n\n| What happens | In | What its user sees |\n|---|---|---|\n", codes(calls))
		for _, s := range situations {
			writeSituation(&b, s, outcomes[i])
		}
	}
	return b.String()
}

// writeSituation writes a row for each result, with the calls that have it.
func writeSituation(b *strings.Builder, s situation, outcomes []outcome) {
	var seen []string
	calls := map[string][]string{}
	tried := 0
	for _, o := range outcomes {
		if o.situation != s.name {
			continue
		}
		tried++
		sees := "the answer"
		if s.name == goodStream {
			sees = "the answer, piece by piece"
		}
		if s.says != "" {
			sees = "`" + o.got.Type + "`: " + strings.ReplaceAll(o.got.Says, "|", "\\|")
		}
		if !slices.Contains(seen, sees) {
			seen = append(seen, sees)
		}
		calls[sees] = append(calls[sees], o.attempt)
	}
	for _, sees := range seen {
		in := codes(calls[sees])
		if len(seen) == 1 && tried > 4 {
			in = fmt.Sprintf("all %d", tried)
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", s.name, in, sees)
	}
}

func codes(names []string) string { return "`" + strings.Join(names, "`, `") + "`" }

// anchor returns GitHub's anchor of a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-':
			return r
		}
		return -1
	}, strings.ToLower(heading))
}
