// Package rooms_test checks which packages of the project may import which others. A room is a package below internal.
package rooms_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "ollama-api-service"

// mayImport lists the rooms that each room may import. cmd may import all. A room without a line here may import none, so a new room
// needs a line.
var mayImport = map[string][]string{
	"api":     {},
	"disk":    {},
	"clock":   {},
	"certs":   {},
	"dial":    {},
	"config":  {"api", "disk"},
	"backup":  {"disk", "store"},
	"store":   {"api", "disk"},
	"auth":    {"api", "store"},
	"books":   {"api", "disk", "store"},
	"limit":   {"api"},
	"backend": {"api", "dial"},
	"sched":   {"api", "backend"},
	"tracing": {"dial"},
	"recipe":  {"api"},

	"dialect": {"api"},
	"proxy":   {"api", "dial", "dialect"},
	"explain": {"api", "sched"},
	"admin":   {"api", "auth", "backend", "books", "dial", "dialect", "explain", "limit", "sched", "store"},
	"server":  {"api", "admin", "auth", "backend", "books", "dialect", "explain", "limit", "proxy", "sched", "store"},

	"test": {"api", "limit"}, // support for tests, which no product file imports
}

// sqlRoom is the only room that may import database drivers and other packages for SQL.
const sqlRoom = "store"

var sqlPackages = []string{"database/sql", "modernc.org/sqlite", "github.com/pressly/goose", "github.com/jackc/pgx"}

// heavyPackages make the linker keep every method of every type: 14 MB of binary.
var heavyPackages = []string{"html/template", "text/template"}

type listed struct {
	ImportPath, Dir  string
	GoFiles, Imports []string
}

// packages returns the packages of the project. It asks the go command, which knows build constraints.
func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./internal/...", "./cmd/...", "./web").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// room returns the name of an internal package, "" for any other package.
func room(importPath string) string {
	name, ok := strings.CutPrefix(importPath, module+"/internal/")
	if !ok {
		return ""
	}
	name, _, _ = strings.Cut(name, "/")
	return name
}

func within(importPath string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return importPath == root || strings.HasPrefix(importPath, root+"/")
	})
}

func TestRoomsImportOneWay(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		if from == "" {
			continue // cmd
		}
		may, known := mayImport[from]
		if !known {
			t.Errorf("room %s has no line in mayImport: add one with the rooms that it may import", from)
			continue
		}
		for _, imported := range p.Imports {
			to := room(imported)
			switch {
			case to != "" && to != from && !slices.Contains(may, to):
				t.Errorf("%s imports %s; it may import only %v", from, to, may)
			case from == "api" && strings.Contains(strings.Split(imported, "/")[0], "."):
				t.Errorf("api imports %s; it may import only the standard library", imported)
			}
		}
	}
}

func TestOnlyTheStoreSpeaksSQL(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			if room(p.ImportPath) != sqlRoom && within(imported, sqlPackages) {
				t.Errorf("%s imports %s, which only %s may", p.ImportPath, imported, sqlRoom)
			}
		}
	}
}

func TestNoTemplatesInTheServer(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			if room(p.ImportPath) != "ollamatest" && within(imported, heavyPackages) {
				t.Errorf("%s imports %s: the linker then keeps every method, 14 MB", p.ImportPath, imported)
			}
		}
	}
}

// Only one room reads the environment: a setting that another package reads would be in no documentation and in no check.
func TestOnlyConfigReadsTheEnvironment(t *testing.T) {
	readers := []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}
	for _, p := range packages(t) {
		if room(p.ImportPath) == "config" || strings.HasPrefix(p.ImportPath, module+"/cmd/") {
			continue
		}
		for _, name := range p.GoFiles {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if pkg, ok := call.X.(*ast.Ident); ok && (pkg.Name == "os" || pkg.Name == "syscall") && slices.Contains(readers, call.Sel.Name) {
					t.Errorf("%s: %s.%s; only internal/config and cmd read the environment", set.Position(n.Pos()), pkg.Name, call.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestTheArchitecturePageIsTrue compares the list of packages in docs/architecture.md, and the arrows of its picture, with the tree.
func TestTheArchitecturePageIsTrue(t *testing.T) {
	text, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(text), "\n## The packages\n")
	page, _, ok := strings.Cut(page, "\n## ")
	if !ok {
		t.Fatal(`docs/architecture.md has no section "The packages" with another one after it`)
	}
	var listed, exist, drawn []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(page, -1) {
		listed = append(listed, row[1])
	}
	for _, arrow := range regexp.MustCompile(`(?m)^ +(\S+) --> (\S+)$`).FindAllStringSubmatch(page, -1) {
		drawn = append(drawn, arrow[1]+" --> "+arrow[2])
	}
	imports := make(map[string][]string) // of rooms, without api
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		exist = append(exist, name)
		from, internal := strings.CutPrefix(name, "internal/")
		if !internal || strings.Contains(from, "/") {
			continue // the picture has only the rooms
		}
		for _, imported := range p.Imports {
			imported, ours := strings.CutPrefix(imported, module+"/")
			if to := strings.TrimPrefix(imported, "internal/"); ours && to != "api" {
				imports[from] = append(imports[from], to)
			}
		}
	}
	for _, path := range regexp.MustCompile(`\b(internal|cmd|web|e2e)/[\w./-]*\w`).FindAllString(string(text), -1) {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("docs/architecture.md names %s: %v", path, err)
		}
	}
	sameNames(t, "package", listed, exist)
	sameNames(t, "arrow", drawn, arrows(imports))
}

// arrows returns the imports that do not follow from others: a --> c is left out if a imports b, and b imports c or what leads to c.
func arrows(imports map[string][]string) []string {
	var leads func(from, to string) bool
	leads = func(from, to string) bool {
		return slices.ContainsFunc(imports[from], func(next string) bool { return next == to || leads(next, to) })
	}
	var all []string
	for from, list := range imports {
		for _, to := range list {
			if !slices.ContainsFunc(list, func(other string) bool { return leads(other, to) }) {
				all = append(all, from+" --> "+to)
			}
		}
	}
	return all
}

func sameNames(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(want)
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("docs/architecture.md lacks the %s %s", what, name)
		}
	}
	for i, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("docs/architecture.md has the %s %s; want it removed", what, name)
		}
		if slices.Contains(got[:i], name) {
			t.Errorf("docs/architecture.md has the %s %s twice", what, name)
		}
	}
}
