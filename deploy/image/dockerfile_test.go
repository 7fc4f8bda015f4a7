package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// dockerfile returns the Dockerfile as BuildKit reads it. A complaint of its linter fails the test.
func dockerfile(t *testing.T) []instructions.Stage {
	t.Helper()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("%v: %s", w.Location, w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, message string, at []parser.Range) { t.Errorf("%s: %s at %v", rule, message, at) }})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	return stages
}

// The images of `docker build` and `make image` have the same settings.
func TestDockerfileDescribesTheSameImage(t *testing.T) {
	stages := dockerfile(t)
	_, config := image(t)
	is := config.Config
	last := stages[len(stages)-1]
	if !strings.HasSuffix(last.BaseName, ":nonroot") || !strings.Contains(last.BaseName, "distroless/static") {
		t.Errorf("it is based on %s, want %q at its end, %q in it", last.BaseName, ":nonroot", "distroless/static")
	}
	seen := map[string]bool{}
	same := func(name string, got, want any) {
		t.Helper()
		seen[name] = true
		if g, w := strings.TrimSpace(sprint(got)), strings.TrimSpace(sprint(want)); g != w {
			t.Errorf("%s is %s, that of the image %s, want %v", name, g, w, w)
		}
	}
	for _, c := range last.Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			same("USER", c.User, is.User)
		case *instructions.WorkdirCommand:
			same("WORKDIR", c.Path, is.WorkingDir)
		case *instructions.EntrypointCommand:
			same("ENTRYPOINT", []string(c.CmdLine), is.Entrypoint)
		case *instructions.CmdCommand:
			same("CMD", []string(c.CmdLine), is.Cmd)
		case *instructions.StopSignalCommand:
			same("STOPSIGNAL", c.Signal, is.StopSignal)
		case *instructions.HealthCheckCommand:
			same("HEALTHCHECK", c.Health.Test, is.Healthcheck.Test)
			same("HEALTHCHECK times", []any{c.Health.Interval, c.Health.Timeout, c.Health.StartPeriod, c.Health.Retries},
				[]any{is.Healthcheck.Interval, is.Healthcheck.Timeout, is.Healthcheck.StartPeriod, is.Healthcheck.Retries})
		case *instructions.ExposeCommand:
			_, exposed := is.ExposedPorts[c.Ports[0]+"/tcp"]
			same("EXPOSE", len(c.Ports) == 1 && exposed, true)
		case *instructions.VolumeCommand:
			_, kept := is.Volumes[c.Volumes[0]]
			same("VOLUME", len(c.Volumes) == 1 && kept, true)
		case *instructions.EnvCommand:
			for _, e := range c.Env {
				same("ENV "+e.Key, slices.Contains(is.Env, e.Key+"="+e.Value), true)
				if !settingNames[e.Key] {
					t.Errorf("%s is not a setting", e.Key)
				}
			}
		case *instructions.LabelCommand:
			for _, l := range c.Labels {
				same("LABEL "+l.Key, is.Labels[l.Key] != "", true)
			}
		}
	}
	for _, name := range []string{"USER", "WORKDIR", "ENTRYPOINT", "CMD", "STOPSIGNAL", "HEALTHCHECK", "EXPOSE", "VOLUME", "ENV HOST", "ENV PORT", "ENV DATA_DIR"} {
		if !seen[name] {
			t.Errorf("the Dockerfile has no %s", name)
		}
	}
	for _, e := range is.Env {
		if name, _, _ := strings.Cut(e, "="); !settingNames[name] && name != "PATH" && name != "SSL_CERT_FILE" {
			t.Errorf("%s of the image is no setting", name)
		}
	}
}

func sprint(v any) string { return strings.Trim(fmt.Sprint(v), "[]") }

// settingNames returns the names in .env.example.
var settingNames = func() map[string]bool {
	text, err := os.ReadFile("../../.env.example")
	if err != nil {
		panic(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#([A-Z_]+)=`).FindAllSubmatch(text, -1) {
		names[string(m[1])] = true
	}
	return names
}()

// The commands of the build stage run here without Docker, in a directory that has only the files that .dockerignore lets through.
func TestDockerfileBuilds(t *testing.T) {
	src := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range allowed(t) {
		from := filepath.Join(root, name)
		info, err := os.Stat(from)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			err = os.CopyFS(filepath.Join(src, name), os.DirFS(from))
		} else {
			var text []byte
			if text, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(filepath.Join(src, name), text, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	drop(t, src)
	ran := 0
	for _, c := range dockerfile(t)[0].Commands {
		run, ok := c.(*instructions.RunCommand)
		if !ok {
			continue
		}
		ran++
		cmd := exec.Command("sh", "-ec", strings.Join(run.CmdLine, " "))
		cmd.Dir = src
		cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH, "VERSION=v9.9.9")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", run.CmdLine, err, out)
		}
	}
	out, err := exec.Command(filepath.Join(src, "out", "ollama-api-service"), "version").Output()
	if err != nil || !strings.Contains(string(out), " v9.9.9 ") || ran != 2 {
		t.Errorf("%d commands made %q, %v, want %q in it, 2", ran, out, err, " v9.9.9 ")
	}
	if info, err := os.Stat(filepath.Join(src, "out", "data")); err != nil || !info.IsDir() {
		t.Errorf("the directory of the volume: %v", err)
	}
}

func ignored(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(regexp.MustCompile(`(?m)^#.*`).ReplaceAllString(string(text), ""))
}

// allowed returns the files that .dockerignore lets through. Its first line must exclude everything.
func allowed(t *testing.T) (names []string) {
	t.Helper()
	lines := ignored(t)
	if lines[0] != "*" {
		t.Fatalf(".dockerignore begins with %q and not with everything, want %q", lines[0], "*")
	}
	for _, line := range lines {
		if name, ok := strings.CutPrefix(line, "!"); ok {
			names = append(names, name)
		}
	}
	return names
}

// drop removes the names that .dockerignore excludes again, at any depth.
func drop(t *testing.T, dir string) {
	t.Helper()
	var patterns []string
	for _, line := range ignored(t) {
		if name, ok := strings.CutPrefix(line, "**/"); ok {
			patterns = append(patterns, name)
		}
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, p := range patterns {
			if match, _ := filepath.Match(p, d.Name()); !match {
				continue
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if d.IsDir() {
				return filepath.SkipDir
			}
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(dir, "cmd")); err != nil {
		t.Fatal(err)
	}
}
