//go:build linux

// Package netbed gives a test its own machines, which can vanish. They are network namespaces connected to that of the test. It needs
// root, or a system that lets users create namespaces, and the command ip (iproute2).
package netbed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	marker  = "inside"        // the argument of the second process
	most    = 5 * time.Minute // for a whole test
	resolve = 15 * time.Second
)

// Inside runs the calling test again in a process with its own network and /etc/hosts. It returns true in that process, and false in the
// first one after that process has ended:
//
//	if !netbed.Inside(t) {
//		return
//	}
func Inside(t *testing.T) bool {
	t.Helper()
	if flag.Arg(0) == marker {
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		ip(t, "link", "set", "lo", "up")
		return true
	}
	if testing.Short() {
		t.Skip("waits for tens of seconds: make test runs it")
	}
	t.Parallel() // most of its time is waiting
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("the command ip is missing: install iproute2")
	}
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", marker)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit), ctx.Err() != nil:
		t.Errorf("inside: %v\n%s", err, out)
	case err != nil:
		t.Skipf("cannot create a network namespace (%v): run this as root", err)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Errorf("the test did not run inside:\n%s", out)
	default:
		t.Logf("inside:\n%s", out)
	}
	return false
}

// Machine is a machine at the other end of a cable.
type Machine struct {
	Addr, near netip.Addr

	t    *testing.T
	work chan func()
	tid  int
}

var count atomic.Int32

// New starts a machine.
func New(t *testing.T) *Machine {
	t.Helper()
	n := count.Add(1)
	m := &Machine{
		Addr: netip.AddrFrom4([4]byte{10, 77, byte(n), 2}), near: netip.AddrFrom4([4]byte{10, 77, byte(n), 1}),
		t: t, work: make(chan func()),
	}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread and its namespace end with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		m.tid = unix.Gettid()
		ready <- err
		for f := range m.work {
			f()
		}
	}()
	must(t, <-ready)
	t.Cleanup(func() { close(m.work) })
	cable := fmt.Sprintf("cable%d", n)
	ip(t, "link", "add", cable, "type", "veth", "peer", "name", "far", "netns", fmt.Sprint(m.tid))
	ip(t, "addr", "add", m.near.String()+"/30", "dev", cable)
	ip(t, "link", "set", cable, "up")
	var mac net.HardwareAddr
	m.do(func() {
		ip(t, "addr", "add", m.Addr.String()+"/30", "dev", "far")
		ip(t, "link", "set", "far", "up")
		far, err := net.InterfaceByName("far")
		must(t, err)
		mac = far.HardwareAddr
	})
	// As behind a router: packets to a machine that has vanished get no answer, not even an error.
	ip(t, "neigh", "replace", m.Addr.String(), "lladdr", mac.String(), "dev", cable, "nud", "permanent")
	return m
}

// do runs f on the machine.
func (m *Machine) do(f func()) {
	m.t.Helper()
	done := make(chan struct{})
	m.work <- func() { defer close(done); f() }
	<-done
}

// Listen listens on a port of the machine.
func (m *Machine) Listen(port uint16) net.Listener {
	m.t.Helper()
	var l net.Listener
	var err error
	m.do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(m.Addr, port).String()) })
	must(m.t, err)
	m.t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the machine to a port of the test.
func (m *Machine) Dial(port uint16) (c net.Conn, err error) {
	m.t.Helper()
	m.do(func() { c, err = net.Dial("tcp", netip.AddrPortFrom(m.near, port).String()) })
	return c, err
}

// Vanish makes the machine stop answering, as after a loss of power.
func (m *Machine) Vanish() {
	m.t.Helper()
	m.do(func() { ip(m.t, "route", "add", "blackhole", m.near.String()+"/32") })
}

// Names is the /etc/hosts of the test.
type Names struct {
	t    *testing.T
	path string
	list map[string][]netip.Addr
}

// Hosts installs an empty one.
func Hosts(t *testing.T) *Names {
	t.Helper()
	n := &Names{t: t, path: filepath.Join(t.TempDir(), "hosts"), list: map[string][]netip.Addr{}}
	must(t, os.WriteFile(n.path, []byte("127.0.0.1 localhost\n"), 0o644))
	must(t, unix.Mount(n.path, "/etc/hosts", "", unix.MS_BIND, ""))
	return n
}

// Point makes a name lead to addresses, and returns once it does.
func (n *Names) Point(name string, to ...netip.Addr) {
	n.t.Helper()
	n.list[name] = to
	text := "127.0.0.1 localhost\n"
	for name, addrs := range n.list {
		for _, a := range addrs {
			text += a.String() + " " + name + "\n"
		}
	}
	must(n.t, os.WriteFile(n.path, []byte(text), 0o644))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(resolve); ; <-tick.C { // the resolver caches the file for some seconds
		got, err := net.DefaultResolver.LookupNetIP(n.t.Context(), "ip4", name)
		for i := range got {
			got[i] = got[i].Unmap()
		}
		if err == nil && slices.Equal(got, to) {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("%s leads to %v (%v), want %v", name, got, err, to)
		}
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
