package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ollama-api-service/internal/recipe"
)

const connectSecret = "a-key-for-the-tests-of-connect"

// modelServer answers /api/tags with list, and /api/show with the description of the model in about, otherwise with 404.
func modelServer(t *testing.T, list string, about map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var question struct{ Model string }
		if r.Method == http.MethodPost {
			_ = json.NewDecoder(r.Body).Decode(&question)
		}
		known, ok := about[question.Model]
		switch {
		case r.Header.Get("Authorization") != "Bearer "+connectSecret:
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method+r.URL.Path == "GET/api/tags":
			w.Write([]byte(list))
		case r.Method+r.URL.Path == "POST/api/show" && ok:
			w.Write([]byte(known))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// Parts of the answers of /api/show.
const (
	chats  = `{"details":{"family":"qwen3moe"},"capabilities":["completion","tools"]}`
	embeds = `{"details":{"family":"gemma3"},"capabilities":["embedding"]}`
)

// Without --model, the recipe gets the first local model that can chat.
func TestConnectChoosesAChatModel(t *testing.T) {
	names := func(list ...string) string {
		var rows []string
		for _, name := range list {
			rows = append(rows, `{"name":"`+name+`"}`)
		}
		return `{"models":[` + strings.Join(rows, ",") + `]}`
	}
	many, about := []string{"x:cloud"}, map[string]string{"x:cloud": chats, "last": chats}
	for i := range maxAsked {
		name := fmt.Sprintf("e%d", i)
		many, about[name] = append(many, name), embeds
	}
	for _, c := range []struct {
		name, list string
		about      map[string]string
		want, says string
	}{
		{"an embedding model first", names("e", "c", "d"), map[string]string{"e": embeds, "c": chats, "d": chats}, "c", ""},
		{"a cloud model first", names("a:cloud", "b:120b-cloud", "c"), map[string]string{"a:cloud": chats, "b:120b-cloud": chats, "c": chats}, "c", ""},
		{"no capabilities", names("e", "n", "c"), map[string]string{"e": `{"details":{"family":"bert"}}`, "n": `{"details":{"family":"nomic-bert"}}`, "c": `{"details":{"family":"llama"}}`}, "c", ""},
		{"no capability", names("e", "c"), map[string]string{"e": `{"details":{"family":"llama"},"capabilities":[]}`, "c": chats}, "c", ""},
		{"a model that was removed", names("g", "c"), map[string]string{"c": chats}, "c", ""},
		{"the last model within the limit", names(append(many[:maxAsked:maxAsked], "last")...), about, "last", ""},
		{"too many models before it", names(append(many, "last")...), about, modelPlace, "no chat model is among the first 20"},
		{"only a removed model", names("g"), nil, modelPlace, "/api/show answers 404"},
		{"no suitable model", names("e", "a:cloud"), map[string]string{"e": embeds, "a:cloud": chats}, modelPlace, "no chat model"},
		{"no model", names(), nil, modelPlace, "no installed model"},
		{"an invalid answer", names("c"), map[string]string{"c": "<html>"}, modelPlace, "description of the model c"},
	} {
		out, errs, exit := call(t, nil, "connect", "openai-js", "--url", modelServer(t, c.list, c.about), "--key", connectSecret)
		if exit != exitOK || !strings.Contains(out, `model: "`+c.want+`"`) || !strings.Contains(errs, c.says) || (c.says == "") != (errs == "") {
			t.Errorf("%s: exit %d, want the model %s and %q, got %s%s", c.name, exit, c.want, c.says, out, errs)
		}
	}
}

func TestConnectFillsARecipe(t *testing.T) {
	url := modelServer(t, `{"models":[{"name":"qwen3-coder:30b"},{"name":"llama3.2:latest"}]}`, map[string]string{"qwen3-coder:30b": chats})
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(connectSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ environ, args []string }{
		"--key":      {nil, []string{"--key", connectSecret}},
		"--key-file": {[]string{queueKey + "=another-key"}, []string{"--key-file", file}},
		queueKey:     {[]string{queueKey + "=" + connectSecret}, nil},
	} {
		out, errs, exit := call(t, c.environ, append([]string{"connect", "claude-code", "--url", url + "/"}, c.args...)...)
		if exit != exitOK || errs != "" {
			t.Errorf("%s: exit %d, %s, want %v, none", name, exit, errs, exitOK)
		}
		for _, line := range []string{
			"export ANTHROPIC_BASE_URL=" + url + "\n", "export ANTHROPIC_AUTH_TOKEN=" + connectSecret + "\n",
			"export ANTHROPIC_DEFAULT_HAIKU_MODEL=qwen3-coder:30b\n", "unset ANTHROPIC_API_KEY\n", "  - Unset ANTHROPIC_API_KEY",
		} {
			if !strings.Contains(out, line) {
				t.Errorf("%s: no %q in\n%s", name, line, out)
			}
		}
	}
	out, errs, exit := call(t, nil, "connect", "codex", "--url", "https://gateway.example.net/ai", "--key", connectSecret, "--model", "m", "--json")
	var r recipe.Recipe
	if err := json.Unmarshal([]byte(out), &r); err != nil || exit != exitOK || errs != "" {
		t.Fatalf("--json: exit %d, %v, %s%s, want %v, none", exit, err, out, errs, exitOK)
	}
	if r.ID != "codex" || r.Address != "https://gateway.example.net/ai/v1" || !strings.Contains(r.Parts[0].Text, `base_url = "https://gateway.example.net/ai/v1"`) {
		t.Errorf("--json: %+v, want %q, %q, %s in it", r, "codex", "https://gateway.example.net/ai/v1", `base_url = "https://gateway.example.net/ai/v1"`)
	}
}

// Without --url, the address is that of the settings. An unknown model keeps its placeholder.
func TestConnectWithLessThanAll(t *testing.T) {
	out, errs, exit := call(t, []string{"PORT=1"}, "connect", "openai-js", "--key", connectSecret)
	if exit != exitOK || !strings.Contains(out, `baseURL: "http://127.0.0.1:1/v1"`) || !strings.Contains(out, `model: "MODEL"`) {
		t.Errorf("exit %d, %s, want %v, %s in it, %s in it", exit, out, exitOK, `baseURL: "http://127.0.0.1:1/v1"`, `model: "MODEL"`)
	}
	if !strings.Contains(errs, "or set --model") || strings.Contains(errs, connectSecret) {
		t.Errorf("stderr: %s, want %q in it, no connectSecret", errs, "or set --model")
	}
	out, errs, exit = call(t, nil, "connect", "ollama", "--url", "http://localhost:8000")
	if exit != exitOK || !strings.Contains(out, "export OLLAMA_HOST=http://localhost:8000/k/KEY\n") || !strings.Contains(errs, "keys create") {
		t.Errorf("without a key: exit %d, %s%s", exit, out, errs)
	}
	url := modelServer(t, `<html>`, nil)
	if _, errs, _ := call(t, nil, "connect", "ollama", "--url", url, "--key", connectSecret); !strings.Contains(errs, "correct --url") {
		t.Errorf("another server: %s, want %q in it", errs, "correct --url")
	}
}

func TestConnectListsTheClients(t *testing.T) {
	out, _, exit := call(t, nil, "connect")
	for _, r := range recipe.All() {
		if !strings.Contains(out, "  "+r.ID+" ") || !strings.Contains(out, r.Name+"\n") {
			t.Errorf("exit %d, %s is not listed:\n%s", exit, r.ID, out)
		}
	}
	out, _, _ = call(t, nil, "connect", "--json")
	var rows []struct{ ID, Name, Group string }
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != len(recipe.All()) || rows[0].Group == "" {
		t.Errorf("--json: %v, %s, want %v of them, a text", err, out, len(recipe.All()))
	}
}

func TestConnectRefuses(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"connect", "lynx"}, `no recipe called "lynx"; connect without a name lists all`},
		{[]string{"connect", "openai"}, "similar ones are openai-python, openai-js"},
		{[]string{"connect", "curl", "--url", "gateway:8000", "--key", "k", "--model", "m"}, "--url must be an address"},
		{[]string{"connect", "curl", "--url", "http://x?y=z", "--key", "k", "--model", "m"}, "--url must be an address"},
		{[]string{"connect", "curl", "--url", "http://x", "--key", "two words", "--model", "m"}, "no spaces"},
		{[]string{"connect", "curl", "--url", "http://x", "--key", "k", "--model", "a\nb"}, "the model contains a character that cannot be printed"},
		{[]string{"connect", "curl", "--url", "http://x", "--key", "k", "--key-file", "f"}, "not both"},
		{[]string{"connect", "curl", "--url", "http://x", "--key-file", "no-such-file"}, "correct --key-file"},
	} {
		out, errs, exit := call(t, nil, c.args...)
		if exit != exitUsage || out != "" || !strings.Contains(errs, c.says) {
			t.Errorf("%q: exit %d, %s%s, want %q", c.args, exit, out, errs, c.says)
		}
	}
}
