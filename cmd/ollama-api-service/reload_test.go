//go:build unix

package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// settingsOf makes the program also read its settings from a file, and returns a function that replaces the file's text.
func (p *process) settingsOf(t *testing.T, text string) (replace func(string)) {
	t.Helper()
	path := filepath.Join(p.Dir, "settings.env")
	p.Args = append(p.Args, "--env-file", path)
	replace = func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace(text)
	return replace
}

// hangUp sends SIGHUP and waits until the log has one more answer to it.
func (p *process) hangUp(t *testing.T) {
	t.Helper()
	const answer = "the settings were "
	before := strings.Count(p.lines.String(), answer)
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, func() bool { return strings.Count(p.lines.String(), answer) > before }, "no log line answers SIGHUP")
}

const hello = `{"model":"tiny","messages":[{"role":"user","content":"hi"}]`

func TestAHangUpEndsNothing(t *testing.T) {
	ollama := ollamatest.Start(t)
	gate := make(chan struct{})
	ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	p := programOf(t, []string{"OLLAMA_BASE_URL=" + ollama.URL}, "serve")
	p.settingsOf(t, "POLICY=\n")
	p.start(t)
	go func() { gate <- struct{}{} }()
	resp, err := p.ask("POST", "/api/chat", hello+"}")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p.hangUp(t)
	close(gate)
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), `"done":true`) {
		t.Errorf("the stream broke: %v, %s, want %s in it", err, body, `"done":true`)
	}
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

// SIGHUP during a start: here the start waits for the writer of a named pipe with the settings.
func TestAHangUpBeforeTheServiceIsUp(t *testing.T) {
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve", "--env-file", "pipe")
	pipe := filepath.Join(p.Dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	p.begin(t)
	f, err := os.OpenFile(pipe, os.O_WRONLY, 0) // blocks until the program has opened it
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("MAX_QUEUE=5\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p.waitFor(t, func() bool { return p.status("/healthz") == http.StatusOK }, "the service does not answer")
	p.wait(t, "not reloaded", "pipe")
}

func TestAHangUpTakesSettingsOver(t *testing.T) {
	ollama := ollamatest.Start(t)
	p := programOf(t, []string{"OLLAMA_BASE_URL=" + ollama.URL, "ADMIN_API_KEY=", "MAX_QUEUE_WAIT=1m"}, "serve")
	const before = "ADMIN_API_KEY=" + testAdmin + "\nMAX_QUEUE=5\nLOG_LEVEL=warn\n"
	replace := p.settingsOf(t, before)
	p.start(t)
	const next = "another-admin-key-of-the-tests"
	const after = "ADMIN_API_KEY=" + next + "\nMAX_QUEUE=6\nMODEL_ALIASES=other=tiny\nPOLICY=raw=refuse\nDEFAULT_USER_RATE_LIMIT=7\n" +
		"DEFAULT_ADMIN_RATE_LIMIT=77\nCORS_ORIGINS=https://chat.example.net\nTRUSTED_PROXIES=127.0.0.1\nLOG_LEVEL=info\nMAX_QUEUE_WAIT=2m\n"
	replace(after)
	p.hangUp(t)

	answer := func(key, method, path, body string, header ...string) (*http.Response, string) {
		t.Helper()
		resp, err := p.ask(method, path, body, append([]string{"Authorization", "Bearer " + key}, header...)...)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	if resp, _ := answer(testAdmin, "GET", "/api/keys", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the admin key before: %s, want 401", resp.Status)
	}
	resp, text := answer(next, "POST", "/api/chat", strings.ReplaceAll(hello, "tiny", "other")+`,"stream":false}`)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-RateLimit-Limit") != "77" {
		t.Errorf("an alias, and the limit of the admin key: %s with a limit of %s; %s, want %d, %q", resp.Status, resp.Header.Get("X-RateLimit-Limit"), text, http.StatusOK, "77")
	}
	resp, text = answer(next, "POST", "/api/keys", `{"name":"a user","role":"user"}`)
	var made struct {
		Key   string `json:"api_key"`
		Limit int64  `json:"rate_limit"`
	}
	if err := json.Unmarshal([]byte(text), &made); err != nil || made.Limit != 7 {
		t.Errorf("a new key: %s, %s: want a rate_limit of 7", resp.Status, text)
	}
	if resp, text := answer(made.Key, "POST", "/api/generate", `{"model":"tiny","prompt":"hi","raw":true,"stream":false}`); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a request that POLICY refuses: %s, %s, want %d", resp.Status, text, http.StatusForbidden)
	}
	resp, _ = answer(next, "OPTIONS", "/api/chat", "", "Origin", "https://chat.example.net", "Access-Control-Request-Method", "POST")
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("a preflight: %s, want 204", resp.Status)
	}
	answer(next, "GET", "/api/keys", "", "X-Forwarded-For", "203.0.113.9")
	p.wait(t, `"route":"/api/keys"`, `"client":"203.0.113.9"`, `"level":"INFO"`)

	line := p.wait(t, `"msg":"the settings were reloaded"`)
	for _, name := range []string{"ADMIN_API_KEY", "MODEL_ALIASES", "POLICY", "DEFAULT_USER_RATE_LIMIT", "DEFAULT_ADMIN_RATE_LIMIT", "CORS_ORIGINS", "TRUSTED_PROXIES", "LOG_LEVEL"} {
		if !strings.Contains(line, `"`+name+`"`) {
			t.Errorf("the line does not name %s: %s", name, line)
		}
	}
	if strings.Contains(line, "MAX_QUEUE") || p.lines.with("need a restart", `["MAX_QUEUE"]`) == "" || p.lines.with("environment overrides", `["MAX_QUEUE_WAIT"]`) == "" {
		t.Errorf("no lines about a needed restart and overriding environment variables:\n%s", p.lines)
	}

	// A wrong setting discards the whole reload.
	replace(strings.ReplaceAll(after, "MODEL_ALIASES=other=tiny", "MODEL_ALIASES=third=tiny") + "SHUTDOWN_GRACE=soon\n")
	p.hangUp(t)
	p.wait(t, `"level":"ERROR"`, "not reloaded", "SHUTDOWN_GRACE")
	if resp, text := answer(next, "POST", "/api/chat", strings.ReplaceAll(hello, "tiny", "other")+`,"stream":false}`); resp.StatusCode != http.StatusOK {
		t.Errorf("after a wrong setting: %s, %s, want %d", resp.Status, text, http.StatusOK)
	}
	if log := p.lines.String(); strings.Contains(log, testAdmin) || strings.Contains(log, next) {
		t.Error("the log contains an admin key")
	}
}

func TestAHangUpReadsTheCertificate(t *testing.T) {
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve")
	first, second := certificateFiles(t, p.Dir, "first.example"), certificateFiles(t, p.Dir, "second.example")
	names := func(files [2]string) string { return fmt.Sprintf("TLS_CERT=%s\nTLS_KEY=%s\n", files[0], files[1]) }
	replace := p.settingsOf(t, names(first))
	p.begin(t)
	p.wait(t, `"msg":"listening"`)
	served := func() string {
		c, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "http://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := served(); got != "first.example" {
		t.Fatalf("%s is served, want %q", got, "first.example")
	}
	replace(names(second))
	p.hangUp(t)
	if got := served(); got != "second.example" {
		t.Errorf("%s is served, want the second", got)
	}
	// A certificate that cannot be used also discards the settings that came with it.
	replace("LOG_LEVEL=debug\n" + names([2]string{first[0], second[1]}))
	p.hangUp(t)
	p.wait(t, "not reloaded", "TLS_CERT")
	if got := served(); got != "second.example" {
		t.Errorf("%s is served, want the second", got)
	}
	if p.lines.with(`"level":"DEBUG"`) != "" {
		t.Error("LOG_LEVEL was applied")
	}
}
