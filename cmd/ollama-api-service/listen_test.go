//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// handOver passes sockets to the program as systemd does. The program also needs its own process ID for that.
func (p *process) handOver(sockets ...*os.File) {
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`}, p.Args...)
	env, dir := p.Env, p.Dir
	p.Cmd = exec.Command("/bin/sh", args...)
	p.Env, p.Dir = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(sockets))), dir
	p.ExtraFiles = sockets
}

// socket opens a listening socket as systemd holds it, and returns it with its address.
func socket(t *testing.T, addr string) (*os.File, string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, l.Addr().String()
}

// With a socket that outlives the service, clients that connect during a restart wait for a moment and get an answer.
func TestARestartRefusesNoConnection(t *testing.T) {
	ollama := ollamatest.Start(t)
	first, addr := socket(t, "127.0.0.1:0")
	second, other := socket(t, "127.0.0.1:0")
	begin := func() *process {
		p := programOf(t, []string{"OLLAMA_BASE_URL=" + ollama.URL, "PORT=1"}, "serve")
		p.handOver(first, second)
		p.url = "http://" + addr
		dir := t.TempDir()
		p.Env = append(p.Env, "DATA_DIR="+dir)
		return p.start(t)
	}
	p := begin()
	p.wait(t, `"msg":"listening"`, addr)
	fresh := &http.Client{Timeout: testPatience, Transport: &http.Transport{DisableKeepAlives: true}}
	done := make(chan struct{})
	asked := make([]atomic.Int64, 4)
	var clients sync.WaitGroup
	for i := range asked {
		clients.Go(func() {
			for at := []string{addr, other}[i%2]; ; asked[i].Add(1) {
				select {
				case <-done:
					return
				default:
				}
				resp, err := fresh.Get("http://" + at + "/healthz")
				if err != nil {
					t.Errorf("after %d: %v", asked[i].Load(), err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s, want %d", resp.Status, http.StatusOK)
				}
			}
		})
	}
	more := func() {
		for i := range asked {
			n := asked[i].Load()
			p.waitFor(t, func() bool { return asked[i].Load() > n+3 || t.Failed() }, "a client got no answer")
		}
	}
	for range 3 {
		more()
		if code := p.stop(t, stopBound); code != 0 {
			t.Errorf("exit %d, want 0", code)
		}
		p = begin()
	}
	more()
	close(done)
	clients.Wait()
}

// The rules for HOST also apply to a socket from systemd.
func TestASocketForEveryoneGetsNoDemoKeys(t *testing.T) {
	f, _ := socket(t, "0.0.0.0:0")
	p := programOf(t, []string{"DEMO_KEYS=true"}, "serve")
	p.handOver(f)
	p.begin(t)
	if code := p.exit(t, stopBound); code != exitUsage || p.lines.with("DEMO_KEYS") == "" {
		t.Errorf("exit %d, want %d and a line about DEMO_KEYS\n%s", code, exitUsage, p.lines)
	}
}

// Load balancers have time between the moment when /readyz fails and the moment when the service stops accepting connections.
func TestAStopGivesTimeToNotice(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	ollama := ollamatest.Start(t)
	p := programOf(t, []string{"OLLAMA_BASE_URL=" + ollama.URL, "SHUTDOWN_DELAY=2s", "SHUTDOWN_GRACE=1s"}, "serve").start(t)
	began := time.Now()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, func() bool { return p.status("/readyz") == http.StatusServiceUnavailable }, "/readyz does not fail")
	testClient.CloseIdleConnections()
	resp, err := p.ask("POST", "/api/chat", hello+`,"stream":false}`)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"done":true`) {
		t.Errorf("a new connection after /readyz failed: %s, %v, %s, want %d, %s in it", resp.Status, err, body, http.StatusOK, `"done":true`)
	}
	if code := p.exit(t, stopBound); code != 0 || time.Since(began) < 2*time.Second {
		t.Errorf("exit %d after %s, want 0 after 2s", code, time.Since(began))
	}
}
