package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// stopBound is SHUTDOWN_GRACE of these tests plus the time for usage and log lines, with room for a slow machine.
const stopBound = 15 * time.Second

// The pipe of a log without an active reader takes 64 KiB. Neither requests nor shutdown may wait for it.
func TestALogThatNothingReadsHoldsNoRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("also standard error: %v", both), func(t *testing.T) {
			ollama := ollamatest.Start(t)
			unread, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer unread.Close()
			p := programOf(t, []string{"OLLAMA_BASE_URL=" + ollama.URL, "SHUTDOWN_GRACE=5s", "DEFAULT_ADMIN_RATE_LIMIT=1000000"}, "serve")
			p.Stdout, p.Stderr = out, io.Discard
			if both {
				p.Stderr = out
			}
			p.start(t)
			out.Close()

			// Enough to exceed logBound too.
			const chats = 4000
			var next, good atomic.Int64
			var clients sync.WaitGroup
			for range 16 {
				clients.Go(func() {
					for next.Add(1) <= chats {
						resp, err := p.ask("POST", "/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`)
						if err != nil {
							t.Errorf("the request after %d answers failed: %v", good.Load(), err)
							return
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"done":true`) {
							t.Errorf("%s, %v: %.200s, want %d, %s in it", resp.Status, err, body, http.StatusOK, `"done":true`)
							return
						}
						good.Add(1)
					}
				})
			}
			clients.Wait()
			if good.Load() != chats {
				t.Fatalf("%d of %d chats were answered, want %v", good.Load(), chats, chats)
			}
			lost := p.json(t, "/health")["log_lines_lost"].(float64)
			if lost == 0 {
				t.Error("/health reports no lost lines")
			}
			resp, err := p.ask("GET", "/metrics", "")
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !strings.Contains(string(text), "\nollama_api_log_lines_lost_total ") || strings.Contains(string(text), "\nollama_api_log_lines_lost_total 0\n") {
				t.Errorf("the metric of lost lines is 0: %v", err)
			}
			if code := p.stop(t, stopBound); code != 0 {
				t.Errorf("exit %d, want 0", code)
			}
		})
	}
}

// A reader that resumes learns how many lines it has missed, and every line that it reads is whole.
func TestALogThatIsReadAgainSaysWhatItLost(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve")
	p.Stdout, p.Stderr = out, io.Discard
	p.start(t)
	out.Close()
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for p.json(t, "/health")["log_lines_lost"].(float64) < 100 {
				for range 50 { // lines of about 180 bytes
					p.status("/api/keys")
				}
			}
		})
	}
	clients.Wait()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r := bufio.NewScanner(in); r.Scan(); {
			lines <- r.Text()
		}
	}()
	reported, last := false, time.After(testPatience)
	for !reported {
		select {
		case line := <-lines:
			if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "}") {
				t.Errorf("a line is not whole: %s, want %q at its start, %q at its end", line, "{", "}")
			}
			reported = strings.Contains(line, "were lost") && strings.Contains(line, `"lines":`) && strings.Contains(line, `"level":"WARN"`)
		case <-last:
			t.Fatal("no line reports the lost lines")
		}
	}
	go func() {
		for range lines {
		}
	}()
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

// The reader of the log may end, such as a pager or a collector that is upgraded.
func TestAClosedLogEndsNothing(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1"}, "serve")
	p.Stdout, p.Stderr = out, out
	p.start(t)
	out.Close()
	in.Close()
	p.waitFor(t, func() bool {
		return p.status("/api/keys") == http.StatusOK && p.json(t, "/health")["log_lines_lost"].(float64) > 3
	}, "no lost lines are counted")
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

// The first admin key must not be lost when standard error cannot be written.
func TestAFirstAdminKeyThatCannotBeShownIsKept(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1", "ADMIN_API_KEY="}, "serve")
	p.Stderr = out
	p.start(t)
	out.Close()
	line := p.wait(t, "first admin key", "first-admin.key")
	key, err := os.ReadFile(p.Dir + "/data/first-admin.key")
	if err != nil || strings.Contains(line, strings.TrimSpace(string(key))) {
		t.Fatalf("%v; the log: %s, want no %v", err, line, strings.TrimSpace(string(key)))
	}
	resp, err := p.ask("GET", "/api/keys", "", "Authorization", "Bearer "+strings.TrimSpace(string(key)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the key in the file: %s, want 200", resp.Status)
	}
}
