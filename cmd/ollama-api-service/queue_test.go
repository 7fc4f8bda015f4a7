package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const queueAnswer = `{"waiting":2,"limit":1024,"in_flight":5,"requests":[
{"request_id":"019a-1","key":"oas_8rT2kLmN0q","key_name":"Anna\u001b[2Js laptop","model":"qwen3:latest","class":"interactive","position":1,"waited_ms":1234.5,"expected_wait_ms":3000},
{"request_id":"019a-2","key":"oas_0123456789","model":"qwen3:latest","class":"batch","position":2,"waited_ms":75000,"expected_wait_ms":5000}],
"backends":[{"name":"gpu1","healthy":true,"draining":false,"in_flight":4,"models":[{"model":"llama3.2:latest","state":"loaded","in_flight":4,"slots":4}]},
{"name":"gpu2","healthy":true,"draining":true,"in_flight":1,"models":[{"model":"qwen3:latest","state":"loading","in_flight":0,"slots":4}]},
{"name":"gpu3","healthy":false,"draining":false,"in_flight":0,"models":[]}]}`

const queueSecret = "a-key-for-the-tests-of-the-queue"

// queueServer answers like the service, but only to one key.
func queueServer(t *testing.T) (environ []string, url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+queueSecret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Path != "/api/queue" {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusFound)
			return
		}
		w.Write([]byte(queueAnswer))
	}))
	t.Cleanup(s.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	return []string{"PORT=" + port}, s.URL
}

func TestQueue(t *testing.T) {
	environ, url := queueServer(t)
	with := append(environ, queueKey+"="+queueSecret)
	out, errs, exit := call(t, with, "queue")
	if exit != exitOK || errs != "" {
		t.Fatalf("exit %d: %s, want %v, none", exit, errs, exitOK)
	}
	for _, line := range []string{
		"5 requests running, 2 waiting of at most 1024",
		"gpu1    healthy       4  llama3.2:latest 4/4",
		"gpu2    drained       1  qwen3:latest is loading",
		"gpu3    no answer     0",
		"qwen3:latest     1  oas_8rT2kLmN0q  Anna[2Js laptop  interactive    1.2s      3.0s  019a-1",
		"qwen3:latest     2  oas_0123456789",
		"1m15s      5.0s  019a-2",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("the output contains control characters: %q", out)
	}
	if out, _, _ := call(t, with, "queue", "--top", "1"); strings.Contains(out, "019a-2") || !strings.Contains(out, "1 more; --top 0") {
		t.Errorf("--top: %s, want no %q, %q in it", out, "019a-2", "1 more; --top 0")
	}
	if out, _, exit := call(t, with, "queue", "--json"); exit != exitOK || !strings.Contains(out, "\n  \"waiting\": 2,") || strings.HasSuffix(out, "\n\n") {
		t.Errorf("--json: %s", out)
	}
	// The sources of the key.
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(queueSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ environ, args []string }{
		"a file":        {append(environ, queueKey+"=another-key"), []string{"--key-file", file}},
		"ADMIN_API_KEY": {append(environ, "ADMIN_API_KEY="+queueSecret), nil},
		"--url":         {[]string{queueKey + "=" + queueSecret}, []string{"--url", url + "/"}},
	} {
		if out, errs, exit := call(t, c.environ, append([]string{"queue", "--once"}, c.args...)...); exit != exitOK || !strings.Contains(out, "019a-1") {
			t.Errorf("%s: exit %d: %s%s, want %v, %q in it", name, exit, out, errs, exitOK, "019a-1")
		}
	}
}

func TestQueueFails(t *testing.T) {
	environ, url := queueServer(t)
	bad := func(exit int, words []string, environ []string, args ...string) {
		t.Helper()
		fails(t, environ, exit, words, append([]string{"queue"}, args...)...)
		_, errs, _ := call(t, environ, append([]string{"queue"}, args...)...)
		if strings.Contains(errs, queueSecret) {
			t.Errorf("%q: the output contains the key: %q, want no queueSecret", args, errs)
		}
	}
	keyed := append(environ, queueKey+"="+queueSecret)
	bad(exitUsage, []string{"--key-file", queueKey}, environ)
	bad(exitUsage, []string{"--key-file"}, environ, "--key-file", "/nonexistent/key")
	bad(exitUsage, []string{"no spaces"}, append(environ, queueKey+"=two words "+queueSecret))
	bad(exitUsage, []string{"--top"}, keyed, "--top", "-1")
	bad(exitUsage, []string{"--url"}, keyed, "--url", "gateway.example.net")
	bad(exitUsage, []string{"--url"}, keyed, "--url", "http://"+queueSecret+"@127.0.0.1")
	bad(exitUsage, []string{"PORT", "--url"}, []string{"PORT=0", queueKey + "=" + queueSecret})
	bad(exitFailure, []string{"401", "--key-file"}, append(environ, queueKey+"=another-key-that-is-not-known"))
	bad(exitFailure, []string{"302", "--url"}, keyed, "--url", url+"/elsewhere")
	bad(exitFailure, []string{"no answer", "--url"}, keyed, "--url", "http://127.0.0.1:1")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"hello":1}`)) }))
	defer other.Close()
	bad(exitFailure, []string{"not one of this service"}, keyed, "--url", other.URL)
}

// The live view refreshes at each tick. It waits for a service that has answered before, and ends if the first request fails.
func TestQueueIsWatched(t *testing.T) {
	var screen bytes.Buffer
	p := &program{stdout: &screen, now: time.Now}
	ctx, stop := context.WithCancel(t.Context())
	tick := make(chan time.Time, 4)
	asked := 0
	ask := func() ([]byte, error) {
		asked++
		switch asked {
		case 2:
			return nil, errors.New("no answer from there")
		case 4:
			stop()
		}
		tick <- time.Time{}
		return []byte(queueAnswer), nil
	}
	tick <- time.Time{}
	var f queueFlags
	if err := f.watch(ctx, p, ask, tick); err != nil || asked != 4 {
		t.Errorf("%v after %d questions, want 4", err, asked)
	}
	screens := strings.Split(screen.String(), clearScreen)
	if len(screens) != 4 || !strings.Contains(screens[1], "019a-1") || !strings.Contains(screens[2], "no answer from there") || !strings.Contains(screens[3], "019a-1") {
		t.Errorf("%q, want 4 of them, %q in it, %q in it, %q in it", screens, "019a-1", "no answer from there", "019a-1")
	}
	never := func() ([]byte, error) { return nil, errors.New("no answer from there") }
	if err := f.watch(t.Context(), p, never, tick); err == nil {
		t.Error("the view waits for a service that has never answered")
	}
}
