// Package rooms_test holds the rooms of the project to the directions in which they may know each other.
package rooms_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "ollama-api-service"

// mayImport are the rooms that each room may import. cmd may import all; who is not named here may import none, so a new
// room must find its place in this table.
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
	"usage":   {"api", "disk", "store"},
	"limit":   {"api"},
	"backend": {"api", "dial"},
	"sched":   {"api", "backend"},
	"tracing": {"dial"},
	"recipe":  {"api"},

	"netbed":   {},
	"otlptest": {},
	"dialect":  {"api"},
	"proxy":    {"api", "dial", "dialect"},
	"server":   {"api", "auth", "limit", "sched", "proxy", "usage", "store", "dialect", "backend", "dial", "disk"},

	"ollamatest": {"api"},
}

// sqlRoom is the one room that may import database drivers and what speaks SQL.
const sqlRoom = "store"

var sqlPackages = []string{"database/sql", "modernc.org/sqlite", "github.com/pressly/goose", "github.com/jackc/pgx"}

// heavyPackages make the linker keep every method of every type: 14 MB of binary.
var heavyPackages = []string{"html/template", "text/template"}

type listed struct {
	ImportPath, Dir  string
	GoFiles, Imports []string
}

// packages asks the go command, which knows build constraints, for the packages of the project.
func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./internal/...", "./cmd/...").Output()
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
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// room is the name of an internal package, "" for anything else.
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
			t.Errorf("room %s has no line in mayImport: say there which rooms it may know", from)
			continue
		}
		for _, imported := range p.Imports {
			to := room(imported)
			switch {
			case to != "" && to != from && !slices.Contains(may, to):
				t.Errorf("%s imports %s; it may import %v only", from, to, may)
			case from == "api" && strings.Contains(strings.Split(imported, "/")[0], "."):
				t.Errorf("api imports %s; it may import the standard library only", imported)
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

// Environment names stand in one room: a setting that is read elsewhere is in no documentation and in no check.
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
