package recipe

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The lines of docs/clients.md that enclose the recipes.
const (
	docsStart = "<!-- From here to the end of the recipes, \"make clients\" writes this file from internal/recipe. -->\n"
	docsEnd   = "<!-- The end of the recipes. -->\n"
)

// The recipes in docs/clients.md are generated from the list.
func TestTheDocumentationIsFresh(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "clients.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, started := strings.Cut(string(text), docsStart)
	have, tail, ended := strings.Cut(rest, docsEnd)
	if !started || !ended {
		t.Fatalf("%s has no line %q or %q", path, docsStart, docsEnd)
	}
	want := markdown(t)
	if *update {
		if err := os.WriteFile(path, []byte(head+docsStart+want+docsEnd+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if have != want {
		t.Errorf("the recipes in %s are not up to date with internal/recipe: run \"make clients\"", path)
	}
}

// markdown returns a table for each group, followed by the recipes.
func markdown(t *testing.T) string {
	t.Helper()
	var tables, recipes strings.Builder
	var group Group
	for _, r := range All() {
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(&tables, "\n### %s\n\n| Client | Address | Key | Look out for | Tried |\n|---|---|---|---|---|\n", group)
		}
		r, err := r.Fill(Values{URL: "http://localhost:8000", Key: "KEY", Model: "MODEL"})
		if err != nil {
			t.Fatal(err)
		}
		trap := ""
		if len(r.Traps) > 0 {
			trap = strings.TrimSpace(firstSentence.FindString(r.Traps[0]))
		}
		fmt.Fprintf(&tables, "| [%s](#%s) | `%s` | %s | %s | *%s* (%s) |\n", r.Name, anchor("connect "+r.ID), r.Address, r.Key, trap, r.Tried, r.Version)
		writeRecipe(&recipes, r)
	}
	return tables.String() + "\n## The recipes\n" + recipes.String() + "\n"
}

var firstSentence = regexp.MustCompile(`^.*?\.(\s|$)`)

func writeRecipe(b *strings.Builder, r Recipe) {
	fmt.Fprintf(b, "\n### connect %s\n\n%s.\n", r.ID, r.Name)
	for _, p := range r.Parts {
		where := "In " + p.Where
		switch {
		case p.Where == "shell":
			where = "In a shell"
		case p.Language == Form:
			where = "Under *" + p.Where + "*"
		case strings.ContainsAny(p.Where, "/."):
			where = "In `" + p.Where + "`"
		}
		fmt.Fprintf(b, "\n%s:\n\n```%s\n%s```\n", where, p.Language, p.Text)
	}
	if len(r.Traps) > 0 {
		b.WriteString("\n")
	}
	for _, trap := range r.Traps {
		fmt.Fprintf(b, "- %s\n", trap)
	}
}

// anchor is GitHub's anchor for a heading.
func anchor(heading string) string { return strings.ReplaceAll(heading, " ", "-") }
