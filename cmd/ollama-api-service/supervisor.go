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
	// extendBy is how long systemd waits for the next progress message of a start. extendEvery is how often one is sent.
	extendBy    = time.Minute
	extendEvery = 15 * time.Second
	// stopExtra is how long a shutdown may take in addition to SHUTDOWN_DELAY and SHUTDOWN_GRACE: for the last rows, spans and log lines.
	stopExtra = 30 * time.Second
)

// supervisor reports the state of the service to systemd, as sd_notify(3) describes. Without systemd it does nothing.
type supervisor struct {
	states chan string
	phase  atomic.Pointer[string]
	up     context.CancelFunc // ends the progress messages of the start
	end    context.CancelFunc
	tasks  sync.WaitGroup
	ctx    context.Context
}

// supervise begins to report the start of the service. notify sends a state.
func supervise(notify func(state string)) *supervisor {
	s := &supervisor{states: make(chan string, 16)}
	s.ctx, s.end = context.WithCancel(context.Background())
	start, up := context.WithCancel(s.ctx)
	s.up = up
	s.phase.Store(new("starting"))
	// Send from a separate goroutine, because a blocked receiver must not block the service.
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
			s.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", extendBy.Microseconds(), *s.phase.Load()))
		})
	})
	return s
}

// systemd sends a state to the systemd that started this process, if any.
func systemd(state string) { _, _ = daemon.SdNotify(false, state) }

// every calls f immediately and then after each pause, until ctx ends.
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

// send drops a state if the channel is full.
func (s *supervisor) send(state string) {
	select {
	case s.states <- state:
	default:
	}
}

// starts reports what the start is doing. It also extends the timeout, because a migration or a long journal may take a while.
func (s *supervisor) starts(phase string) {
	s.phase.Store(&phase)
	s.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", extendBy.Microseconds(), phase))
}

// ready reports that the service answers.
func (s *supervisor) ready(status string) {
	s.up()
	s.send("READY=1\nSTATUS=" + status)
}

// watch feeds systemd's watchdog as long as works returns. works must hang if the service hangs. It only has to return within the
// interval of the watchdog, so that a slow machine is not restarted. An interval of 0 means no watchdog.
func (s *supervisor) watch(interval time.Duration, works func()) {
	if interval <= 0 {
		return
	}
	// Not one of tasks: if works hangs, close must not wait for it.
	go every(s.ctx, interval/3, func() {
		works()
		s.send(daemon.SdNotifyWatchdog)
	})
}

// reloads reports that the settings are being reloaded, until the returned function is called.
func (s *supervisor) reloads() (done func()) {
	s.send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	return func() { s.send(daemon.SdNotifyReady) }
}

// stops reports that the service is stopping, and how long that may take.
func (s *supervisor) stops(longest time.Duration) {
	s.up()
	s.send(fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d\nSTATUS=waiting for running requests", daemon.SdNotifyStopping, longest.Microseconds()))
}

// close stops all reports.
func (s *supervisor) close() {
	s.end()
	s.tasks.Wait()
}
