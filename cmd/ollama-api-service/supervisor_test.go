package main

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// told are the states that a supervisor has sent.
type told struct {
	mu   sync.Mutex
	list []string
}

func (l *told) notify(state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, state)
}

// count is how many states have word since the last count.
func (l *told) count(word string) (n int) {
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

// However long a start takes, systemd hears of it before its time is up; and once the service answers, no more.
func TestALongStartIsExtended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told told
		s := supervise(told.notify)
		s.starts("moving a large database")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := told.count("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=moving a large database"); n < int(time.Hour/extendBy)*2 {
			t.Errorf("told %d times in an hour, want more often than every %s", n, extendBy)
		}
		s.ready("serving")
		synctest.Wait()
		if n := told.count("READY=1\nSTATUS=serving"); n != 1 {
			t.Errorf("ready was told %d times, want once", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := told.count(""); n != 0 {
			t.Errorf("told %d times after the start, want none", n)
		}
		s.stops(90 * time.Second)
		synctest.Wait()
		if n := told.count("STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000\n"); n != 1 {
			t.Errorf("the stop was told %d times, want once", n)
		}
		s.close()
	})
}

// The watchdog is kept quiet while the service works, also where it is slow, and no more when it hangs.
func TestTheWatchdogSeesAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told told
		s := supervise(told.notify)
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
		told.count("")
		for range 10 {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if told.count("WATCHDOG=1") == 0 {
				t.Error("a machine that is slow would be ended")
			}
		}
		hung.Store(true)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		told.count("")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := told.count("WATCHDOG=1"); n != 0 {
			t.Errorf("%d signs of life while it hangs", n)
		}
		close(hang)
		s.close()
		time.Sleep(takes)
	})
}

// A receiver that stands still holds nothing.
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
