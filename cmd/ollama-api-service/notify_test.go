//go:build unix

package main

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The messages that the program sends to systemd, from start to stop.
func TestSystemdIsTold(t *testing.T) {
	at := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var mu sync.Mutex
	var states []string
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			states = append(states, string(buf[:n]))
			mu.Unlock()
		}
	}()
	sent := func(word string, times int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, s := range states {
				if strings.Contains(s, word) {
					n++
				}
			}
			return n >= times
		}
	}
	p := programOf(t, []string{"OLLAMA_BASE_URL=http://127.0.0.1:1", "NOTIFY_SOCKET=" + at, "WATCHDOG_USEC=300000", "SHUTDOWN_GRACE=7s"}, "serve")
	p.settingsOf(t, "LOG_LEVEL=info\n")
	p.start(t)
	p.waitFor(t, sent("READY=1\nSTATUS=serving at "+strings.TrimPrefix(p.url, "http://"), 1), "no READY message")
	if !sent("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=opening the database", 1)() || !sent("STATUS=importing the journal", 1)() {
		t.Errorf("no message describes the start: %q", states)
	}
	p.waitFor(t, sent("WATCHDOG=1", 5), "the watchdog is not fed")
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, sent("RELOADING=1\nMONOTONIC_USEC=", 1), "no message about the reload")
	p.waitFor(t, sent("READY=1", 2), "no message about the end of the reload")
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	if !sent("STOPPING=1\nEXTEND_TIMEOUT_USEC=37000000", 1)() {
		t.Errorf("no message announces the stop: %q", states)
	}
}
