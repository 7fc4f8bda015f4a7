package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

var block = regexp.MustCompile("(?s)### ([^\n]+)\n+```bash\n(.*?)```")

// The documented examples run unchanged, with curl and the demo keys. Only the address differs.
func TestTheDocumentedExamples(t *testing.T) {
	text, err := os.ReadFile("testdata/examples.md")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, t.TempDir(), ollamaURL, []string{"--demo"})
	checks := map[string]func(t *testing.T, body map[string]any){
		"1. List Available Models": func(t *testing.T, body map[string]any) {
			if models, _ := body["models"].([]any); len(models) < 2 || models[0].(map[string]any)["name"] == nil {
				t.Errorf("models %v", body)
			}
		},
		"2. Generate Text": func(t *testing.T, body map[string]any) {
			if body["model"] != "llama2" || body["response"] == "" || body["done"] != true {
				t.Errorf("answer %v", body)
			}
		},
		"3. Chat Completion": func(t *testing.T, body map[string]any) {
			if m, _ := body["message"].(map[string]any); m["role"] != "assistant" || m["content"] == "" {
				t.Errorf("answer %v", body)
			}
		},
		"4. Get Usage Statistics": func(t *testing.T, body map[string]any) {
			for _, name := range []string{"total_requests", "requests_by_model", "requests_by_endpoint", "average_response_time", "last_24h_requests"} {
				if _, ok := body[name]; !ok {
					t.Errorf("no %s in %v", name, body)
				}
			}
		},
		"5. Create New API Key (Admin Only)": func(t *testing.T, body map[string]any) {
			if body["name"] != "Production API Key" || body["role"] != "user" || body["rate_limit"] != 500.0 || body["created_at"] == nil ||
				!secretKey.MatchString(body["api_key"].(string)) {
				t.Errorf("key %v", body)
			}
			preview := body["key_preview"].(string)
			call(t, "DELETE", s.URL+"/api/keys/"+preview, "demo-admin-key-12345", "").want(t, http.StatusOK)
			call(t, "GET", s.URL+"/api/models", body["api_key"].(string), "").want(t, http.StatusUnauthorized)
		},
		"6. List All API Keys (Admin Only)": func(t *testing.T, body map[string]any) {
			keys, _ := body["api_keys"].([]any)
			if total, _ := body["total"].(float64); len(keys) == 0 || int(total) != len(keys) || strings.Contains(fmt.Sprint(body), "demo-admin-key") {
				t.Errorf("keys %v", body)
			}
		},
		"7. Get All Usage Statistics (Admin Only)": func(t *testing.T, body map[string]any) {
			all, _ := body["statistics"].(map[string]any)
			user, _ := all["demo-user"].(map[string]any)
			for _, name := range []string{"key_name", "role", "total_requests", "last_request"} {
				if _, ok := user[name]; !ok {
					t.Errorf("no %s for demo-user in %v", name, body)
				}
			}
		},
	}
	blocks := block.FindAllStringSubmatch(string(text), -1)
	if len(blocks) != len(checks) {
		t.Fatalf("%d examples, %d checks", len(blocks), len(checks))
	}
	for _, b := range blocks {
		name, command := b[1], strings.ReplaceAll(b[2], "http://localhost:8000", s.URL)
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "7.") {
				s.stats(t, "demo-user-key-67890", 2) // both calls above are in the books
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-c", `curl() { command curl -sS --fail-with-body "$@"; }; `+command)
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s%s", err, out.String(), errs.String())
			}
			checks[name](t, answer{Body: out.String()}.object(t))
		})
	}
	// The documented limits of the demo keys.
	for key, limit := range map[string]string{"demo-user-key-67890": "100", "demo-admin-key-12345": "1000"} {
		if a := call(t, "POST", s.URL+"/api/generate", key, oneToken).want(t, http.StatusOK); a.Header.Get("X-RateLimit-Limit") != limit {
			t.Errorf("%s has the limit %s, want %s", key, a.Header.Get("X-RateLimit-Limit"), limit)
		}
	}
	health := call(t, "GET", s.URL+"/health", "", "").want(t, http.StatusOK).object(t)
	for _, name := range []string{"status", "ollama_backend", "timestamp"} {
		if health[name] == nil {
			t.Errorf("no %s in /health: %v", name, health)
		}
	}
	if root := call(t, "GET", s.URL+"/", "", "").want(t, http.StatusOK).object(t); len(root) == 0 {
		t.Error("GET / has an empty answer")
	}
}

var pythonBlock = regexp.MustCompile("(?s)```python\n(.*?)```")

// The documented Python program runs too, and prints the four documented lines.
func TestTheDocumentedPythonProgram(t *testing.T) {
	text, err := os.ReadFile("testdata/examples.md")
	if err != nil {
		t.Fatal(err)
	}
	program := pythonBlock.FindStringSubmatch(string(text))
	if program == nil {
		t.Fatal("testdata/examples.md has no program")
	}
	s := start(t, t.TempDir(), ollamaURL, []string{"--demo"})
	python, _ := findPython(t)
	out, err := exec.CommandContext(t.Context(), python, "-c", strings.ReplaceAll(program[1], "http://localhost:8000", s.URL)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range []string{
		`Available models: \{'models': \[\{.*'name': 'llama2:latest'`,
		`Generated text: \{'model': 'llama2', .*'response': '.+', 'done': True`,
		`Chat response: \{'model': 'llama2', .*'message': \{'role': 'assistant', 'content': '.+'\}`,
		`Usage statistics: \{.*'total_requests': \d`,
	} {
		if !regexp.MustCompile("(?m)^" + line).Match(out) {
			t.Errorf("no line %s in\n%s", line, out)
		}
	}
}

// Demo keys are public, so they work only from this machine.
func TestDemoKeysRefuseForwardedRequests(t *testing.T) {
	s := start(t, t.TempDir(), ollamaURL, []string{"--demo"})
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/api/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer demo-admin-key-12345")
	req.Header.Set("X-Forwarded-For", "192.0.2.1")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %s", res.Status)
	}
	plain := serve(t)
	call(t, "GET", plain.URL+"/api/models", "demo-admin-key-12345", "").want(t, http.StatusUnauthorized)
}
