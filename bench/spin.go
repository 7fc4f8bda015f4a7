//go:build linux

package main

import (
	"runtime"
	"strconv"

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

// busySize is the memory that each thread of keepBusy walks through, so that caches are those of a machine with other work.
const busySize = 4 << 20

// keepBusy is the defined load: n threads of normal priority that never sleep, until the process is ended. The kernel divides the cores
// evenly between them and the threads of a contestant.
func keepBusy(n string) error {
	threads, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	for range threads {
		go func() {
			runtime.LockOSThread()
			memory := make([]uint64, busySize/8)
			for {
				for i := range memory {
					memory[i] += uint64(i)
				}
			}
		}()
	}
	select {}
}
