package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/recipe"
)

// agent is a coding agent that runs for one turn, set up as its recipe describes.
type agent struct {
	recipe string
	// turn is a shell function that replaces the last command of the recipe: it runs one turn without a person. $FEWER is empty, or makes the
	// agent retry less often.
	turn, fewer string
	env         []string
	atOnce      int // the number of concurrent cases: an agent that sleeps before a retry uses no CPU
	says        func(stdout, stderr string) string
}

var claudeCode = agent{
	recipe: "claude-code",
	turn:   `claude() { exec claude -p 'the sea' "$@"; }`,
	env:    []string{"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1", "DISABLE_ERROR_REPORTING=1"},
	fewer:  "CLAUDE_CODE_MAX_RETRIES=1",
	atOnce: 3,
	says:   func(stdout, _ string) string { return stdout },
}

var codex = agent{
	recipe: "codex",
	turn:   `codex() { exec codex exec --skip-git-repo-check $FEWER "$@" 'the sea'; }`,
	fewer:  "FEWER=-c model_providers.gateway.request_max_retries=1 -c model_providers.gateway.stream_max_retries=1",
	atOnce: 6,
	says:   func(_, stderr string) string { return codexWhere.ReplaceAllString(lastLine(stderr, "ERROR: "), "") },
}

// codexWhere matches the text that Codex appends to a message: an address and an id, which differ in each run.
var codexWhere = regexp.MustCompile(`, url: .*`)

var opencode = agent{
	recipe: "opencode",
	turn:   `opencode() { exec opencode run "$@" 'the sea'; }`,
	env:    []string{"OPENCODE_DISABLE_AUTOUPDATE=1", "OPENCODE_DISABLE_MODELS_FETCH=1", "OPENCODE_DISABLE_LSP_DOWNLOAD=1", "OPENCODE_DISABLE_DEFAULT_PLUGINS=1"},
	atOnce: 2,
	says:   func(_, stderr string) string { return lastLine(stderr, "Error: ") },
}

// lastLine returns the rest of the last line with the given prefix.
func lastLine(text, begin string) string {
	i := strings.LastIndex("\n"+text, "\n"+begin)
	if i < 0 {
		return ""
	}
	line, _, _ := strings.Cut(text[i+len(begin):], "\n")
	return line
}

// play runs the agent once for each case.
func (a agent) play(t *testing.T, orders []order) []got {
	results := make([]got, len(orders))
	slots := make(chan struct{}, a.atOnce)
	var running sync.WaitGroup
	for i, o := range orders {
		slots <- struct{}{}
		home := t.TempDir()
		running.Go(func() {
			defer func() { <-slots }()
			results[i] = a.run(t, home, o)
		})
	}
	running.Wait()
	return results
}

// run runs one turn with its own home directory. Only addresses of this machine can be reached.
func (a agent) run(t *testing.T, home string, o order) got {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	script, err := a.setUp(home, o)
	if err != nil {
		t.Error(err)
		return got{}
	}
	cmd := exec.CommandContext(ctx, "sh", "-e", "-c", script)
	cmd.Dir = filepath.Join(home, "work")
	cmd.Env = append(isolated(home), a.env...)
	if o.Patient && a.fewer != "" {
		cmd.Env = append(cmd.Env, a.fewer)
	}
	cmd.WaitDelay = time.Second // its child processes may keep its output open
	dieWithTests(cmd)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	from := time.Now()
	err = cmd.Run()
	stdout, stderr := terminalCode.ReplaceAllString(out.String(), ""), terminalCode.ReplaceAllString(errs.String(), "")
	g := got{OK: err == nil, Text: stdout, Ms: int(time.Since(from).Milliseconds())}
	switch exit, ok := errors.AsType[*exec.ExitError](err); {
	case ctx.Err() != nil:
		g.Type, g.Says = "still running", "(nothing for two minutes)"
	case ok:
		g.Type, g.Says = strings.Replace(exit.Error(), "exit status", "exit", 1), strings.TrimSpace(a.says(stdout, stderr))
	case err != nil:
		t.Error(err)
	}
	if testing.Verbose() {
		t.Logf("%s, %s, %s: %d ms\n%s\n%s", a.recipe, o.Call, o.Model, g.Ms, tail(redact(stdout)), tail(redact(stderr)))
	}
	return g
}

// setUp writes the files of the recipe, and returns its shell commands.
func (a agent) setUp(home string, o order) (script string, err error) {
	r, err := recipe.Find(a.recipe)
	if err == nil {
		r, err = r.Fill(recipe.Values{URL: o.URL, Key: o.Key, Model: o.Model})
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(home, "work"), 0o700)
	}
	for _, part := range r.Parts {
		path, inHome := strings.CutPrefix(part.Where, "~/")
		switch {
		case err != nil:
			return "", err
		case inHome:
			path = filepath.Join(home, path)
			if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
				err = os.WriteFile(path, []byte(part.Text), 0o600)
			}
		default:
			script += part.Text
		}
	}
	return a.turn + "\n" + script, err
}

// isolated returns an environment with its own home directory, in which only addresses of this machine can be reached. The agents and the
// programs of dirs come first in PATH.
func isolated(home string, dirs ...string) []string {
	bin, err := filepath.Abs(filepath.Join("agents", "node_modules", ".bin"))
	if err != nil {
		panic(err) // there is no working directory
	}
	path := strings.Join(append([]string{bin}, append(dirs, os.Getenv("PATH"))...), string(filepath.ListSeparator))
	return []string{"PATH=" + path, "HOME=" + home, "TERM=dumb", "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=127.0.0.1,localhost"}
}

// Claude Code's own messages.
const (
	claudeNoModel = "There's an issue with the selected model"
	claudeBroken  = "API Error: Server error mid-response. The response above may be incomplete."
)

// agentPrograms are the coding agents.
func agentPrograms(t *testing.T) []program {
	versions := lockedVersions(t, npmProject(t, "agents"))
	const turn = asks | streamed | uncounted | scripted
	return []program{
		{
			name: "Claude Code", recipe: "claude-code", version: versions["@anthropic-ai/claude-code"], play: claudeCode.play, wrongKey: "exit 1", slow: true, patience: agentPatience,
			calls: []attempt{{name: "claude -p", traits: turn | modern, says: map[string]string{
				hidden: claudeNoModel, unknown: claudeNoModel, nearly: claudeBroken, stops: claudeBroken,
			}}},
		},
		{
			name: "Codex", recipe: "codex", version: versions["@openai/codex"], play: codex.play, wrongKey: "exit 1", slow: true, patience: agentPatience,
			calls: []attempt{{name: "codex exec", traits: turn | modern, says: map[string]string{atLimit: "hit your usage limit. Try again at"}}},
		},
		{
			name: "opencode", recipe: "opencode", version: versions["opencode-ai"], play: opencode.play, wrongKey: "exit 1", slow: true, patience: agentPatience,
			calls: []attempt{{name: "opencode run", traits: turn}},
			// It waits for the whole Retry-After, even an hour, and each case takes six seconds of CPU time.
			skips: []string{atLimit, begins, nearly, silent, stops, hidden},
		},
	}
}
