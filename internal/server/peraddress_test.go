package server_test

import (
	"net"
	"net/netip"
	"testing"

	"ollama-api-service/internal/server"
)

// arrivals is a listener whose connections have the addresses that a test chooses.
type arrivals chan net.Conn

func (a arrivals) Accept() (net.Conn, error) {
	c, open := <-a
	if !open {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (a arrivals) Close() error   { return nil }
func (a arrivals) Addr() net.Addr { return &net.TCPAddr{} }

type fromAddress struct {
	net.Conn
	addr net.Addr
}

func (c fromAddress) RemoteAddr() net.Addr { return c.addr }

// One address may have a bounded number of connections at a time. For IPv6, the bound is for the /64. It does not apply to this machine and
// trusted proxies, because they stand for many clients.
func TestConnectionsByAddress(t *testing.T) {
	const most = 2
	for _, c := range []struct {
		from  []string
		taken int
	}{
		{[]string{"203.0.113.7:1", "203.0.113.7:2", "203.0.113.7:3", "203.0.113.7:4"}, 2},
		{[]string{"203.0.113.7:1", "203.0.113.7:2", "203.0.113.8:1"}, 3},
		{[]string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "[2001:db8:0:1::1]:1"}, 3},
		{[]string{"[::ffff:203.0.113.7]:1", "203.0.113.7:2", "[::ffff:203.0.113.7]:3"}, 2},
		{[]string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "[::1]:1", "[::1]:2", "[::1]:3"}, 6},
		{[]string{"10.1.2.3:1", "10.1.2.3:2", "10.1.2.3:3"}, 3},
	} {
		refused := 0
		in := make(arrivals, len(c.from)+1)
		l := server.LimitAddresses(in, most, func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }, server.Refusals(func(reason string) {
			if reason != "connections" {
				t.Errorf("refused for %s, want %q", reason, "connections")
			}
			refused++
		}))
		arrive := func(from string) {
			near, far := net.Pipe()
			t.Cleanup(func() { far.Close() })
			in <- fromAddress{near, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))}
		}
		for _, from := range c.from {
			arrive(from)
		}
		arrive("198.51.100.1:1") // the connection after the refused ones is accepted
		close(in)
		var taken []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			taken = append(taken, conn)
		}
		if len(taken)-1 != c.taken {
			t.Errorf("%v: got %d connections accepted, want %d", c.from, len(taken)-1, c.taken)
		}
		if want := len(c.from) - c.taken; refused != want {
			t.Errorf("%v: got %d counted as refused, want %d", c.from, refused, want)
		}
		for _, conn := range taken {
			conn.Close()
			conn.Close() // net/http may close twice, which counts once
		}
	}
	// Closing a connection makes room for another one; nothing else does.
	in := make(arrivals, 1)
	l := server.LimitAddresses(in, 1, func() []netip.Prefix { return nil }, server.Refusals(func(string) {}))
	for range 3 {
		near, far := net.Pipe()
		in <- fromAddress{near, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 1}}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		far.Close()
	}
}
