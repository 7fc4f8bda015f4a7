//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// proc is a process that the harness started. It ends with the harness, also when the harness is killed.
type proc struct {
	cmd    *exec.Cmd
	addr   string // where it listens
	stdout string // file with its output
	stderr string
	exited chan struct{}
}

// startProc starts a program in dir with its output in files NAME.out and NAME.err there. env is its whole environment; nil means
// the harness's own.
func startProc(dir, name string, env []string, program string, args ...string) (*proc, error) {
	p := &proc{
		cmd:    exec.Command(program, args...),
		stdout: filepath.Join(dir, name+".out"),
		stderr: filepath.Join(dir, name+".err"),
		exited: make(chan struct{}),
	}
	out, err := os.OpenFile(p.stdout, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	errs, err := os.OpenFile(p.stderr, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, env, out, errs
	// The signal arrives when the thread that started the child ends. main has locked the harness to its first thread.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// stop ends the process: SIGTERM, and after ten seconds SIGKILL.
func (p *proc) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// kill ends the process at once. Use it only for a process that can lose nothing but open streams.
func (p *proc) kill() {
	for _, pid := range p.pids() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.exited
}

// until polls ready each millisecond until it is true, the process has ended or limit has passed.
func (p *proc) until(limit time.Duration, what string, ready func() bool) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ready() {
			return nil
		}
		select {
		case <-p.exited:
			text, _ := os.ReadFile(p.stderr)
			return fmt.Errorf("ended before %s: %s", what, lastLine(text))
		default:
		}
	}
	return fmt.Errorf("not %s within %v", what, limit)
}

// pids returns the process and its children, because nginx answers from workers.
func (p *proc) pids() []int {
	own := p.cmd.Process.Pid
	pids := []int{own}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		if pid, parent, err := parents(text); err == nil && parent == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cpu returns the processor time (user and system) that the process, its threads and its children have used so far. It reads each
// process' CPU clock, which counts nanoseconds; /proc/PID/stat counts in steps of 10 ms.
func (p *proc) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range p.pids() {
		var t unix.Timespec
		// MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.h.
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// quiet waits until the process has finished its remaining work (writing its books, collecting garbage), so that this work counts in
// its own figure and not in the next one. It gives up after 20 s.
func (p *proc) quiet() (time.Duration, error) {
	last, err := p.cpu()
	for end := time.Now().Add(20 * time.Second); err == nil && time.Now().Before(end); {
		time.Sleep(200 * time.Millisecond)
		var now time.Duration
		if now, err = p.cpu(); err == nil && now-last < 3*time.Millisecond {
			return now, nil
		}
		last = now
	}
	return last, err
}

// rss returns the resident memory of the process and its children, in bytes.
func (p *proc) rss() (int64, error) {
	var sum int64
	for _, pid := range p.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, fs.ErrNotExist) { // the kernel does not have this file
			text, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		}
		if err != nil {
			return 0, err
		}
		n, err := resident(text)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// parents returns the process id and its parent's from /proc/PID/stat. The name between them may contain spaces and parentheses.
func parents(stat []byte) (pid, parent int, err error) {
	before, _, _ := bytes.Cut(stat, []byte(" ("))
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0, errors.New("no name in /proc/PID/stat")
	}
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) < 2 {
		return 0, 0, errors.New("/proc/PID/stat is cut short")
	}
	if pid, err = strconv.Atoi(string(before)); err != nil {
		return 0, 0, err
	}
	parent, err = strconv.Atoi(fields[1])
	return pid, parent, err
}

// resident reads the bytes of resident memory from smaps_rollup ("Rss:") or status ("VmRSS:").
func resident(text []byte) (int64, error) {
	for _, name := range []string{"Rss:", "VmRSS:"} {
		if n, ok := kilobytes(text, name); ok {
			return n, nil
		}
	}
	return 0, errors.New("no line with the resident memory")
}

// kilobytes reads the line "NAME N kB" and returns it in bytes.
func kilobytes(text []byte, name string) (int64, bool) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) == 3 && f[0] == name && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
