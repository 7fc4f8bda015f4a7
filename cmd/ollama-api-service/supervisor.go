package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	// extendBy is how long systemd waits for the next sign of life of a start, and extendEvery how often there is one.
	extendBy    = time.Minute
	extendEvery = 15 * time.Second
	// stopBeside is what a stop takes in addition to SHUTDOWN_DELAY and SHUTDOWN_GRACE, at most: the last rows, spans and lines of the log.
	stopBeside = 30 * time.Second
)

// supervisor tells systemd how the service is, as sd_notify(3) describes. Without systemd it tells no one.
type supervisor struct {
	states chan string
	phase  atomic.Pointer[string]
	up     context.CancelFunc // ends the signs of life of the start
	end    context.CancelFunc
	tasks  sync.WaitGroup
	ctx    context.Context
}

// supervise begins with the start of the service. notify sends a state.
func supervise(notify func(state string)) *supervisor {
	s := &supervisor{states: make(chan string, 16)}
	s.ctx, s.end = context.WithCancel(context.Background())
	start, up := context.WithCancel(s.ctx)
	s.up = up
	s.phase.Store(new("starting"))
	// One goroutine of its own: a receiver that stands still must not hold the service.
	go func() {
		for {
			select {
			case state := <-s.states:
				notify(state)
			case <-s.ctx.Done():
				return
			}
		}
	}()
	s.tasks.Go(func() {
		every(start, extendEvery, func() {
			s.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", extendBy.Microseconds(), *s.phase.Load()))
		})
	})
	return s
}

// systemd sends a state to the systemd that has started this process, if one has.
func systemd(state string) { _, _ = daemon.SdNotify(false, state) }

// every calls f at once and then that often, until ctx ends.
func every(ctx context.Context, pause time.Duration, f func()) {
	t := time.NewTicker(pause)
	defer t.Stop()
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
}

// tell drops a state where the ones before it have not been taken yet.
func (s *supervisor) tell(state string) {
	select {
	case s.states <- state:
	default:
	}
}

// starts says what the start is doing, and that it makes progress: a migration or a long journal may take its time.
func (s *supervisor) starts(phase string) {
	s.phase.Store(&phase)
	s.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", extendBy.Microseconds(), phase))
}

// ready says that the service answers.
func (s *supervisor) ready(status string) {
	s.up()
	s.tell("READY=1\nSTATUS=" + status)
}

// watch keeps systemd's watchdog quiet as long as works returns, which is to hang where the service does. It only has to return within
// the interval of the watchdog, so that a machine that is slow is not taken for one that hangs. An interval of 0 is no watchdog.
func (s *supervisor) watch(interval time.Duration, works func()) {
	if interval <= 0 {
		return
	}
	// Not one of tasks: where works hangs, the end must not wait for it.
	go every(s.ctx, interval/3, func() {
		works()
		s.tell(daemon.SdNotifyWatchdog)
	})
}

// reloads says that the settings are read again, until the function it returns is called.
func (s *supervisor) reloads() (done func()) {
	s.tell(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	return func() { s.tell(daemon.SdNotifyReady) }
}

// stops says that the service ends, and how long it may take.
func (s *supervisor) stops(longest time.Duration) {
	s.up()
	s.tell(fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d\nSTATUS=requests under way may finish", daemon.SdNotifyStopping, longest.Microseconds()))
}

// close ends all of it.
func (s *supervisor) close() {
	s.end()
	s.tasks.Wait()
}
