package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/netbed"
)

// v2 returns a header of version 2 with an address.
func v2(t *testing.T, from string) string {
	t.Helper()
	var to net.Addr = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}
	at := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
	if at.IP.To4() == nil {
		to = &net.TCPAddr{IP: net.ParseIP("2001:db8::ffff"), Port: 80}
	}
	h := proxyproto.HeaderProxyFromAddrs(2, at, to)
	h.Command = proxyproto.PROXY
	text, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func local(t *testing.T) string {
	t.Helper()
	text, err := proxyproto.HeaderProxyFromAddrs(2, nil, nil).Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// askRaw sends a header and a request, and returns the status, or 0 if the connection ended without one.
func askRaw(t *testing.T, c net.Conn, header, path, key, forwarded string) int {
	t.Helper()
	defer c.Close()
	text := header + "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + "\r\n"
	if forwarded != "" {
		text += "X-Forwarded-For: " + forwarded + "\r\n"
	}
	if _, err := io.WriteString(c, text+"\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestProxyProtocol(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) {
		o.ProxyProtocol, o.MetricsOpen = true, true
		o.Live.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		o.PerAddress = 3
	}})
	b.client.Transport = &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			_, err = io.WriteString(c, local(t))
		}
		return c, err
	}}
	office, _ := b.key(`{"name":"office","role":"user","allowed_ips":["203.0.113.0/24","2001:db8::/64"]}`)
	for _, c := range []struct {
		name, header, path, key, forwarded string
		want                               int
	}{
		{"version 1", "PROXY TCP4 203.0.113.7 192.0.2.1 51008 80\r\n", "/api/tags", office, "", 200},
		{"version 1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 51008 80\r\n", "/api/tags", office, "", 200},
		{"version 2", v2(t, "203.0.113.7:51008"), "/api/tags", office, "", 200},
		{"version 2, IPv6", v2(t, "[2001:db8::1]:51008"), "/api/tags", office, "", 200},
		{"from elsewhere", v2(t, "198.51.100.7:51008"), "/api/tags", office, "", 403},
		{"from elsewhere, which claims a proxy", v2(t, "198.51.100.7:51008"), "/api/tags", office, "203.0.113.7", 403},
		{"LOCAL", local(t), "/healthz", "", "", 200},
		{"UNKNOWN", "PROXY UNKNOWN\r\n", "/healthz", "", "", 200},
		{"a client on the proxy's machine is no program here", v2(t, "127.0.0.9:51008"), "/metrics", "x", "", 401},
		{"a demo key", v2(t, "127.0.0.9:51008"), "/api/tags", "demo-user-key-67890", "", 401},
		{"no header", "", "/healthz", "", "", 0},
		{"half of one", "PROXY TCP4 203.0.113.7\r\n", "/healthz", "", "", 0},
		{"an endless one", "PROXY TCP4 " + strings.Repeat("1", 70_000), "/healthz", "", "", 0},
	} {
		if got := askRaw(t, b.dialRaw(), c.header, c.path, c.key, c.forwarded); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	// A connection that never sends its header does not delay the others. Connections are counted by the client's address.
	b.dialRaw()
	hold := func(from string) (taken bool) {
		c := b.dialRaw()
		io.WriteString(c, v2(t, from)+"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		return err == nil && resp.StatusCode == 200
	}
	for i := range 4 {
		if taken := hold("203.0.113.99:1"); taken != (i < 3) {
			t.Errorf("connection %d of one client: got accepted %v", i+1, taken)
		}
	}
	if !hold("203.0.113.100:1") {
		t.Error("another client was refused, want it accepted")
	}
	if log := b.logs.String(); !strings.Contains(log, `"reason":"proxy_protocol"`) || !strings.Contains(log, `"network":"203.0.113.99/32"`) {
		t.Error("the refusals are not logged")
	}
}

func TestProxyProtocolBeforeTLS(t *testing.T) {
	b := start(t, setup{http2: true, change: func(o *server.Options) {
		o.ProxyProtocol, o.Live.TrustedProxies = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	}})
	_, trust := testTLS()
	trust.ServerName = "127.0.0.1"
	c := b.dialRaw()
	io.WriteString(c, v2(t, "203.0.113.7:51008"))
	secure := tls.Client(c, trust)
	if got := askRaw(t, secure, "", "/healthz", "", ""); got != 200 {
		t.Errorf("with TLS: got status %d, want 200", got)
	}
	if !strings.Contains(b.logs.String(), `"client":"203.0.113.7"`) {
		t.Error("the log does not have the client's address")
	}
}

// A peer that is not a trusted proxy is refused whatever its header says. A program on this machine may only use a header without an
// address.
func TestProxyProtocolOfAStranger(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	stranger, proxy := netbed.New(t), netbed.New(t)
	b := start(t, setup{change: func(o *server.Options) {
		o.ProxyProtocol, o.Live.TrustedProxies = true, []netip.Prefix{netip.PrefixFrom(proxy.Addr, 32)}
	}, listen: func(l net.Listener) net.Listener {
		l.Close()
		everywhere, err := net.Listen("tcp", "0.0.0.0:8000")
		if err != nil {
			t.Fatal(err)
		}
		return everywhere
	}})
	from := func(m *netbed.Machine, header string, want int) {
		t.Helper()
		c, err := m.Dial(8000)
		if err != nil {
			t.Fatal(err)
		}
		if got := askRaw(t, c, header, "/healthz", "", ""); got != want {
			t.Errorf("%v with %q: %d, want %d", m.Addr, header, got, want)
		}
	}
	from(proxy, v2(t, "203.0.113.7:1"), 200)
	from(proxy, "", 0)
	from(stranger, v2(t, "203.0.113.7:1"), 0)
	from(stranger, local(t), 0)
	from(stranger, "", 0)
	b.url = "http://127.0.0.1:8000"
	if got := askRaw(t, b.dialRaw(), local(t), "/healthz", "", ""); got != 200 {
		t.Errorf("a health check from this machine: got %d, want 200", got)
	}
	if got := askRaw(t, b.dialRaw(), v2(t, "203.0.113.7:1"), "/healthz", "", ""); got != 0 {
		t.Errorf("a program on this machine with another address in its header: got %d, want 0", got)
	}
}
