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

// What systemd is told, by the program itself, from the start to the end.
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
	told := func(word string, times int) func() bool {
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
	p.waitFor(t, told("READY=1\nSTATUS=serving at "+strings.TrimPrefix(p.url, "http://"), 1), "it was not told that the service is ready")
	if !told("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=opening the database", 1)() || !told("STATUS=booking the journal", 1)() {
		t.Errorf("it was not told what the start does: %q", states)
	}
	p.waitFor(t, told("WATCHDOG=1", 5), "the watchdog is not kept quiet")
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.waitFor(t, told("RELOADING=1\nMONOTONIC_USEC=", 1), "it was not told of the reload")
	p.waitFor(t, told("READY=1", 2), "it was not told of the end of the reload")
	if code := p.stop(t, stopBound); code != 0 {
		t.Errorf("exit %d", code)
	}
	if !told("STOPPING=1\nEXTEND_TIMEOUT_USEC=37000000", 1)() {
		t.Errorf("it was not told of the stop: %q", states)
	}
}
