//go:build linux

package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// keepAwake spins on every core at idle priority until the process is ended. Waking a core that sleeps takes tens of
// microseconds, far more on a virtual machine, and whether a request meets a sleeping core is the scheduler's luck: without
// this, latencies through a proxy were lower than those without one. Every other thread gets a core at once.
func keepAwake() error {
	failed := make(chan error)
	for range runtime.NumCPU() {
		go func() {
			runtime.LockOSThread()
			idle := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
			if err := unix.SchedSetAttr(0, &idle, 0); err != nil {
				failed <- err
				return
			}
			for { //nolint:staticcheck // spinning is its purpose
			}
		}()
	}
	return <-failed
}
