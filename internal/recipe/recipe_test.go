package recipe

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write web/clients.json and the recipes of docs/clients.md from the list")

// The list of the web page is generated from the Go list.
func TestTheJSONIsFresh(t *testing.T) {
	path := filepath.Join("..", "..", "web", "clients.json")
	want, err := JSON()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, want) {
		t.Errorf("%s is not up to date (%v): run \"make clients\"", path, err)
	}
}

var (
	idForm      = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	addressForm = regexp.MustCompile(`^URL(/k/KEY)?(/v1|/api)?$`)
)

func TestEachRecipeIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range All() {
		switch {
		case !idForm.MatchString(r.ID) || seen[r.ID]:
			t.Errorf("%q is not a valid ID, or is used twice", r.ID)
		case r.Name == "" || r.Group == "" || r.Key == "" || r.Version == "" || len(r.Parts) == 0:
			t.Errorf("%s: something is empty: %+v", r.ID, r)
		case !addressForm.MatchString(r.Address):
			t.Errorf("%s: address %q", r.ID, r.Address)
		case r.Tried != Run && r.Tried != Replayed:
			t.Errorf("%s: tried %q", r.ID, r.Tried)
		}
		seen[r.ID] = true
		filled, err := r.Fill(Values{URL: "http://gateway.test", Key: "the-key", Model: "the-model"})
		if err != nil {
			t.Fatal(err)
		}
		var all string
		for _, p := range filled.Parts {
			all += p.Text
			if strings.Contains(p.Text, "<<") || !strings.HasSuffix(p.Text, "\n") {
				t.Errorf("%s, %s: a placeholder is left, or the last line has no line break:\n%s", r.ID, p.Where, p.Text)
			}
		}
		if !strings.Contains(all, "http://gateway.test") || !strings.Contains(all, "the-key") {
			t.Errorf("%s has no address or no key:\n%s", r.ID, all)
		}
	}
}

// hostile are values that would end a badly quoted literal in one of the languages.
var hostile = Values{
	URL: "http://gateway.test/it's", Key: `k'"$(id)` + "`id`" + `\u0022\"#{id}<<MODEL>>${id}%KEY`, Model: `m:1'; touch broken; " \" ' # {{id}} \n //`,
}

// A key or a model name stays within its literal, whatever it contains.
func TestNoValueBreaksOut(t *testing.T) {
	for _, r := range All() {
		filled, err := r.Fill(hostile)
		if err != nil {
			t.Fatalf("%s: %v", r.ID, err)
		}
		tame, err := r.Fill(Values{URL: "U", Key: "K", Model: "M"})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range filled.Parts {
			var places []string
			fill(r.Parts[i].Text, func(place string) string {
				places = append(places, hostile.expand(place))
				return ""
			})
			if strings.Count(p.Text, "\n") != strings.Count(tame.Parts[i].Text, "\n") {
				t.Errorf("%s, %s: the values added a line:\n%s", r.ID, p.Where, p.Text)
			}
			for _, value := range places {
				if got, err := p.Language.read(t, p.Language.quote(value)); err != nil || got != value {
					t.Errorf("%s: %q reads %q in %s (%v), want %v", r.ID, value, got, p.Language, err, value)
				}
			}
			p.parse(t, r.ID)
		}
	}
}

// read returns what a language reads from a literal, by its own parser if it is installed, otherwise as JSON.
func (l Language) read(t *testing.T, literal string) (string, error) {
	switch l {
	case Form:
		return literal, nil
	case Shell:
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+literal)
		cmd.Dir = t.TempDir() // so that code that escapes its literal does no harm
		out, err := cmd.Output()
		return string(out), err
	case Go:
		return strconv.Unquote(literal)
	}
	var text string
	err := json.Unmarshal([]byte(literal), &text)
	return text, err
}

// parse checks the whole text with a parser of its language, if one is installed.
func (p Part) parse(t *testing.T, id string) {
	t.Helper()
	var err error
	switch p.Language {
	case Shell:
		cmd := exec.CommandContext(t.Context(), "sh", "-n")
		cmd.Stdin = strings.NewReader(p.Text)
		err = cmd.Run()
	case Go:
		_, err = parser.ParseFile(token.NewFileSet(), "main.go", p.Text, parser.AllErrors)
	case JSONFile:
		var v any
		err = json.Unmarshal([]byte(p.Text), &v)
	}
	if err != nil {
		t.Errorf("%s, %s: %v in\n%s", id, p.Where, err, p.Text)
	}
}

func TestFillRefusesWhatCannotBeTyped(t *testing.T) {
	r, err := Find("curl")
	if err != nil {
		t.Fatal(err)
	}
	good := Values{URL: "http://gateway.test", Key: "key", Model: "model"}
	for _, bad := range []string{"a\nb", "a\x00b", "a\x1b[2J", "a\u202eb", "a\u2028b", "a\xffb", "-option"} {
		for _, v := range []Values{{bad, good.Key, good.Model}, {good.URL, bad, good.Model}, {good.URL, good.Key, bad}} {
			if _, err := r.Fill(v); err == nil {
				t.Errorf("%+q is accepted, want an error", v)
			}
		}
	}
}

// A key in an address is one segment of the path.
func TestTheKeyInAnAddressIsEscaped(t *testing.T) {
	r, err := Find("ollama")
	if err != nil {
		t.Fatal(err)
	}
	filled, err := r.Fill(Values{URL: "http://gateway.test/", Key: "a/b?c#d%", Model: "m"})
	if want := "http://gateway.test/k/a%2Fb%3Fc%23d%25"; err != nil || filled.Address != want || !strings.Contains(filled.Parts[0].Text, want) {
		t.Errorf("%s (%v), want %s", filled.Address, err, want)
	}
}

func TestFindKnowsNearNames(t *testing.T) {
	if r, err := Find("Codex"); err != nil || r.ID != "codex" {
		t.Errorf("Codex: %v, %v, want %q", r.ID, err, "codex")
	}
	for id, want := range map[string]string{"vscode": "copilot-vscode", "openai": "openai-python, openai-js", "lynx": "lists all"} {
		if _, err := Find(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
	if !slices.IsSortedFunc(All(), func(a, b Recipe) int { return order(a.Group) - order(b.Group) }) {
		t.Error("the groups are not in their order")
	}
}

func order(g Group) int {
	return slices.Index([]Group{Commands, SDKs, Frameworks, Agents, Editors, Apps}, g)
}
