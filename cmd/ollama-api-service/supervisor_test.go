package main

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stateLog records the states that a supervisor has sent.
type stateLog struct {
	mu   sync.Mutex
	list []string
}

func (l *stateLog) notify(state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, state)
}

// count returns the number of states that contain word since the last call.
func (l *stateLog) count(word string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.list {
		if strings.Contains(s, word) {
			n++
		}
	}
	l.list = nil
	return n
}

// systemd gets progress messages however long a start takes, and none after the service is ready.
func TestALongStartIsExtended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent stateLog
		s := supervise(sent.notify)
		s.starts("moving a large database")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := sent.count("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=moving a large database"); n < int(time.Hour/extendBy)*2 {
			t.Errorf("%d messages in an hour, want more often than every %s", n, extendBy)
		}
		s.ready("serving")
		synctest.Wait()
		if n := sent.count("READY=1\nSTATUS=serving"); n != 1 {
			t.Errorf("READY was sent %d times, want once", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := sent.count(""); n != 0 {
			t.Errorf("%d progress messages after the start, want none", n)
		}
		s.stops(90 * time.Second)
		synctest.Wait()
		if n := sent.count("STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000\n"); n != 1 {
			t.Errorf("STOPPING was sent %d times, want once", n)
		}
		s.close()
	})
}

// The watchdog is fed while the service works, even if it is slow, but not if it hangs.
func TestTheWatchdogSeesAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent stateLog
		s := supervise(sent.notify)
		s.ready("")
		takes, hang := 50*time.Second, make(chan struct{})
		var hung atomic.Bool
		s.watch(2*time.Minute, func() {
			if hung.Load() {
				<-hang
			}
			time.Sleep(takes)
		})
		synctest.Wait()
		sent.count("")
		for range 10 {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if sent.count("WATCHDOG=1") == 0 {
				t.Error("systemd would kill a slow service")
			}
		}
		hung.Store(true)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		sent.count("")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := sent.count("WATCHDOG=1"); n != 0 {
			t.Errorf("%d watchdog messages while the service hangs, want none", n)
		}
		close(hang)
		s.close()
		time.Sleep(takes)
	})
}

// A blocked receiver does not block the supervisor.
func TestASupervisorThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		still := make(chan struct{})
		s := supervise(func(string) { <-still })
		for range 100 {
			s.starts("starting")
		}
		s.ready("")
		s.stops(time.Second)
		s.close()
		close(still)
	})
}
