//go:build linux

package main

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// A real Ollama computes on a processor of its own, and everything else runs on the others. Otherwise the figures would show how attackers,
// victims and the gateway take processor time from Ollama, which they do not do on another machine.

// shareProcessors keeps this process, and those that it starts, off Ollama's processor. With one processor, it does nothing.
func shareProcessors() error {
	_, others, ok := processors()
	if !ok {
		return nil
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks { // threads that start later inherit it
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &others); err != nil && err != unix.ESRCH {
			return err
		}
	}
	runtime.GOMAXPROCS(others.Count())
	return nil
}

// onOwnProcessor runs start, so that the process that it starts has Ollama's processor.
func onOwnProcessor(start func() error) error {
	own, _, ok := processors()
	if !ok {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &own); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return start()
}

// allowed are the processors that this process had when it started.
var allowed = func() (set unix.CPUSet) {
	_ = unix.SchedGetaffinity(0, &set)
	return set
}()

// processors divides the allowed processors. ok is false if there is only one.
func processors() (ollama, others unix.CPUSet, ok bool) {
	others = allowed
	for cpu := range 1024 {
		if allowed.IsSet(cpu) {
			ollama.Set(cpu)
			others.Clear(cpu)
			return ollama, others, others.Count() > 0
		}
	}
	return ollama, others, false
}
