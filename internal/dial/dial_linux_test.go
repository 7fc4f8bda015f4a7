package dial_test

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/test/netbed"
)

// connect opens a connection to a listener and returns both ends.
func connect(t *testing.T, l net.Listener) (near, far net.Conn) {
	t.Helper()
	target := dial.To(&url.URL{Scheme: "http", Host: l.Addr().String()}, dial.Access{})
	near, err := target.Socket(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// A connection to a machine that has vanished fails within half a minute, whether or not anything was sent to it. A machine whose program
// reads and sends nothing is not given up.
func TestVanished(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	gone, slow := netbed.New(t), netbed.New(t)
	waiting, _ := connect(t, gone.Listen(80))
	sending, _ := connect(t, gone.Listen(81))
	patient, far := connect(t, slow.Listen(80))
	ended := make(chan error, 3)
	began := time.Now()
	read := func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}
	gone.Vanish()
	go read(waiting)
	if _, err := sending.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	go read(sending)
	answered := make(chan error, 1)
	go func() {
		_, err := patient.Read(make([]byte, 1))
		answered <- err
	}()
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("got %v, want a timeout of the connection", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a connection to a machine that has vanished still exists after half a minute")
		}
	}
	if took := time.Since(began); took < 15*time.Second {
		t.Errorf("closed after %v: unplugging a cable for a moment would break every stream, want at least %v", took, 15*time.Second)
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the slow machine's answer: %v", err)
	}
}

func TestAMove(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	names, a, b := netbed.Hosts(t), netbed.New(t), netbed.New(t)
	a.Listen(80)
	b.Listen(80)
	target := dial.To(&url.URL{Scheme: "http", Host: "gpu.test:80"}, dial.Access{})
	var left []bool // for each move, whether the name leads to the addresses of a and b
	target.OnMove(func(leads func(netip.Addr) bool) { left = append(left, leads(a.Addr), leads(b.Addr)) })
	open := func(to *netbed.Machine) {
		t.Helper()
		c, err := target.Socket(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := dial.Remote(c); got != to.Addr {
			t.Errorf("connected to %v, want %v", got, to.Addr)
		}
	}
	names.Point("gpu.test", a.Addr)
	open(a)
	open(a)
	names.Point("gpu.test", b.Addr, a.Addr) // a new address in addition to the old one
	open(b)
	if left != nil {
		t.Errorf("a name with an additional address counts as moved: %v", left)
	}
	names.Point("gpu.test", a.Addr)
	open(a)
	if len(left) != 2 || !left[0] || left[1] {
		t.Errorf("after the move back: %v", left)
	}
}
