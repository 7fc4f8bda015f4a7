package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/recipe"
	"ollama-api-service/internal/test/ollamatest"
)

// turns are shell functions that replace the last commands of recipes if those would wait for a person. The functions for "ollama launch"
// do what its source does (cmd/launch of Ollama): they set an agent up for OLLAMA_HOST with a placeholder key, and start it.
var turns = map[string]string{
	"ollama": `ollama() { command ollama "$@" 'the sea'; }`,
	"curl":   "",
	"ollama-launch-claude": `ollama() {
		export ANTHROPIC_BASE_URL="$OLLAMA_HOST" ANTHROPIC_API_KEY= ANTHROPIC_AUTH_TOKEN=ollama CLAUDE_CODE_ATTRIBUTION_HEADER=0 DISABLE_TELEMETRY=1
		export ANTHROPIC_DEFAULT_OPUS_MODEL="$4" ANTHROPIC_DEFAULT_SONNET_MODEL="$4" ANTHROPIC_DEFAULT_HAIKU_MODEL="$4"
		exec claude --model "$4" -p 'the sea'
	}`,
	"ollama-launch-codex": `ollama() {
		export OPENAI_API_KEY=ollama
		exec codex exec --skip-git-repo-check -c model_provider=ollama-launch -c model_providers.ollama-launch.name=Ollama \
			-c model_providers.ollama-launch.base_url="$OLLAMA_HOST/v1/" -c model_providers.ollama-launch.wire_api=responses -m "$4" 'the sea'
	}`,
}

// ranAmongClients are the agents. TestClients runs them with their recipes.
var ranAmongClients = map[string]agent{"claude-code": claudeCode, "codex": codex, "opencode": opencode}

// The test tries every recipe: with the client itself, or with the requests that the client's source sends.
func TestRecipes(t *testing.T) {
	t.Parallel()
	fake := ollamatest.Start(t)
	for _, path := range []string{"/api/chat", "/api/generate", "/v1/chat/completions", "/v1/responses", "/v1/messages"} {
		fake.Handle("POST", path, mortal)
	}
	var origins []string
	for _, r := range recipe.All() {
		if r.Origin != "" && !slices.Contains(origins, r.Origin) {
			origins = append(origins, r.Origin)
		}
	}
	s := start(t, t.TempDir(), fake.URL, nil, "CORS_ORIGINS="+strings.Join(origins, ","))
	values := recipe.Values{URL: s.URL, Key: s.makeKey(t, `,"rate_limit":100000`).Secret, Model: "tiny:latest"}
	versions := recipeVersions(t)
	for _, r := range recipe.All() {
		t.Run(r.ID, func(t *testing.T) {
			filled, err := r.Fill(values)
			if err != nil {
				t.Fatal(err)
			}
			if r.Tried == recipe.Replayed {
				replay(t, filled, values)
				if turns[r.ID] == "" {
					return
				}
			}
			if want, known := versions[r.ID]; known && r.Version != want {
				t.Errorf("the list has version %s, but version %s ran", r.Version, want)
			}
			if _, ok := ranAmongClients[r.ID]; ok {
				return
			}
			if out := runRecipe(t, filled); !strings.Contains(out, strings.TrimSpace(ollamatest.Text(8))) {
				t.Errorf("want the answer in the output, got %s", redact(out))
			}
		})
	}
}

// recipeVersions returns the versions that run here, by recipe.
func recipeVersions(t *testing.T) map[string]string {
	js, agents := lockedVersions(t, npmProject(t, "clients")), lockedVersions(t, npmProject(t, "agents"))
	golang := buildGoClient(t)
	withAI := func(name string) string { return js[name] + " with ai " + js["ai"] }
	return map[string]string{
		"ollama": buildVersion(t, ollamaTool, "github.com/ollama/ollama"), "ollama-js": js["ollama"], "openai-js": js["openai"], "anthropic-js": js["@anthropic-ai/sdk"],
		"ollama-go": moduleVersion(t, golang, "github.com/ollama/ollama"), "openai-go": moduleVersion(t, golang, "github.com/openai/openai-go/v3"),
		"go-openai":     moduleVersion(t, golang, "github.com/sashabaranov/go-openai"),
		"anthropic-go":  moduleVersion(t, golang, "github.com/anthropics/anthropic-sdk-go"),
		"ai-sdk-ollama": withAI("ollama-ai-provider-v2"), "ai-sdk-openai-compatible": withAI("@ai-sdk/openai-compatible"),
		"ai-sdk-openai": withAI("@ai-sdk/openai"), "ai-sdk-anthropic": withAI("@ai-sdk/anthropic"),
		"langchain-js": js["@langchain/ollama"], "llamaindex-js": js["@llamaindex/ollama"] + " with llamaindex " + js["llamaindex"],
		"claude-code": agents["@anthropic-ai/claude-code"], "codex": agents["@openai/codex"], "opencode": agents["opencode-ai"],
	}
}

// runRecipe runs the recipe and returns the client's output.
func runRecipe(t *testing.T, r recipe.Recipe) string {
	t.Helper()
	if len(r.Parts) != 1 {
		t.Fatalf("%s has %d parts: runRecipe does not know how to run them", r.ID, len(r.Parts))
	}
	part := r.Parts[0]
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var cmd *exec.Cmd
	switch part.Language {
	case recipe.Shell:
		turn, known := turns[r.ID]
		if !known {
			t.Fatalf("%s: turns lacks a function that makes its command end", r.ID)
		}
		cmd = exec.CommandContext(ctx, "sh", "-e", "-c", turn+"\n"+part.Text)
		cmd.Dir = home
	case recipe.JavaScript:
		cmd = exec.CommandContext(ctx, nodeOf("clients"), "--input-type=module", "-")
		cmd.Dir = "clients"
		cmd.Stdin = strings.NewReader(part.Text)
	case recipe.Python:
		python, _ := findPython(t)
		cmd = exec.CommandContext(ctx, python, "-")
		cmd.Stdin = strings.NewReader(part.Text)
	case recipe.Go:
		cmd = exec.CommandContext(ctx, buildGoRecipe(t, home, part.Text))
	default:
		t.Fatalf("%s: runRecipe cannot run %s", r.ID, part.Language)
	}
	cmd.Env = isolated(home, filepath.Dir(ollamaTool))
	cmd.WaitDelay = time.Second
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, redact(string(out)), redact(errs.String()))
	}
	return string(out)
}

// buildGoRecipe builds the program within the module of the Go clients.
func buildGoRecipe(t *testing.T, dir, text string) string {
	t.Helper()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, source)
	build.Dir = filepath.Join("clients", "go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// replay sends the requests of the client's source, to the address and with the key of the recipe.
func replay(t *testing.T, r recipe.Recipe, v recipe.Values) {
	t.Helper()
	requests, known := replays[r.ID]
	if !known {
		t.Fatalf("%s is neither run nor in replays", r.ID)
	}
	for _, one := range requests {
		req := one.request(t, r.Address, v)
		if r.Origin != "" {
			preflight(t, req, strings.Replace(r.Origin, "*", "abcdefghijklmnop", 1))
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK || err != nil || len(body) == 0 {
			t.Errorf("%s %s: %s (%v) %s", one.method, one.path, res.Status, err, redact(string(body)))
		}
		if r.Origin != "" && res.Header.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%s %s: the browser would not give the answer to the page: %v", one.method, one.path, res.Header)
		}
	}
}

// preflight sends the preflight of a request as a browser does, and sets the request's Origin.
func preflight(t *testing.T, req *http.Request, origin string) {
	t.Helper()
	ask, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, req.URL.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range req.Header {
		names = append(names, strings.ToLower(name))
	}
	slices.Sort(names)
	ask.Header.Set("Origin", origin)
	ask.Header.Set("Access-Control-Request-Method", req.Method)
	ask.Header.Set("Access-Control-Request-Headers", strings.Join(names, ","))
	res, err := client.Do(ask)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent || res.Header.Get("Access-Control-Allow-Headers") != strings.Join(names, ",") {
		t.Errorf("preflight of %s: %s, %v", req.URL.Path, res.Status, res.Header)
	}
	req.Header.Set("Origin", origin)
}
