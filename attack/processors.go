//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

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

// cpu returns the processor time of Ollama and of its runners.
func (o *tappedOllama) cpu() time.Duration {
	const parent, user, ended, end = 3, 13, 15, 17 // fields of /proc/PID/stat, from 0: user and system time, and those of children that have ended
	own := o.cmd.Process.Pid
	all := ticks(stat(own), user, end)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if fields := stat(pid); ticks(fields, parent, parent+1) == time.Duration(own) {
			all += ticks(fields, user, ended)
		}
	}
	return all * time.Second / 100 // USER_HZ
}

// stat returns the fields of a process from the third on: its name, which may have spaces, is the second.
func stat(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	return strings.Fields(after)
}

// ticks adds fields, of which the first has the number 2.
func ticks(fields []string, from, to int) (sum time.Duration) {
	for i, field := range fields {
		if i+2 >= from && i+2 < to {
			n, _ := strconv.ParseInt(field, 10, 64)
			sum += time.Duration(n)
		}
	}
	return sum
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
