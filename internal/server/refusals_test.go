package server_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var refusedLine = regexp.MustCompile(`(?m)^ollama_api_refused_connections_total\{reason="(\w+)"\} ([1-9]\d*)$`)

// refused returns the counters of refused connections that are not 0.
func (b *bed) refused() string {
	b.t.Helper()
	var list []string
	for _, m := range refusedLine.FindAllStringSubmatch(b.do("GET", "/metrics", adminSecret, "").body, -1) {
		list = append(list, m[1]+" "+m[2])
	}
	return strings.Join(list, ", ")
}

// dialRaw opens a connection to the bed.
func (b *bed) dialRaw() net.Conn {
	b.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(strings.TrimPrefix(b.url, "http://"), "https://"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// ended reads until the other end closes.
func ended(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open after %q", text)
	}
	return string(text)
}

func huge() string {
	return "GET / HTTP/1.1\r\nHost: x\r\nCookie: " + strings.Repeat("x", 40<<10) + "\r\n\r\n"
}

func (b *bed) wantRefused(want string) {
	b.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; <-tick.C {
		got := b.refused()
		if got == want {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("got the counters %q, want %q", got, want)
		}
	}
}

// A connection that net/http itself refuses is counted and logged. A connection that ends because its client leaves is not.
func TestRefusedBeforeARequestIsRead(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	b := start(t, setup{})
	late := b.dialRaw()
	io.WriteString(late, "GET / HTTP/1.1\r\nHost:")
	for _, text := range []string{"", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n"} {
		c := b.dialRaw()
		io.WriteString(c, text)
		c.Close()
	}
	c := b.dialRaw()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v, %v, want 200", resp, err)
	}
	c.Close()
	for range 3 {
		c := b.dialRaw()
		io.WriteString(c, "NONSENSE\r\n\r\n")
		if text := ended(t, c); !strings.HasPrefix(text, "HTTP/1.1 400") {
			t.Errorf("bytes that are not HTTP got %q, want %q at its start", text, "HTTP/1.1 400")
		}
	}
	c = b.dialRaw()
	io.WriteString(c, huge())
	if text := ended(t, c); !strings.HasPrefix(text, "HTTP/1.1 431") {
		t.Errorf("a large header got %q, want %q at its start", text, "HTTP/1.1 431")
	}
	// Also on a connection that has served a request.
	c = b.dialRaw()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	in := bufio.NewReader(c)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("%v, %v, want 200", resp, err)
	} else {
		io.Copy(io.Discard, resp.Body)
	}
	io.WriteString(c, "NONSENSE\r\n\r\n")
	ended(t, c)
	ended(t, late)
	b.wantRefused("bad_header 4, header_timeout 1, header_too_large 1")
	for reason, says := range map[string]string{
		"bad_header": `"count":1,"network":"127.0.0.1/32"`, "header_too_large": "more than 32 KiB", "header_timeout": "no whole request header",
	} {
		if n := strings.Count(b.logs.String(), `"reason":"`+reason+`"`); n != 1 || !strings.Contains(b.logs.String(), says) {
			t.Errorf("got %d lines for %s in the first minute, want 1 with %q", n, reason, says)
		}
	}
	b.stop() // the refusals since then are logged at the end
	if !strings.Contains(b.logs.String(), `"reason":"bad_header","count":3`) {
		t.Errorf("the log does not report the other three: %s, want %s in it", b.logs, `"reason":"bad_header","count":3`)
	}
}

func TestRefusedWithTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	b := start(t, setup{http2: true})
	_, trust := testTLS()
	trust.ServerName = "127.0.0.1"
	secure := func(protocol string) *tls.Conn {
		t.Helper()
		config := trust.Clone()
		config.NextProtos = []string{protocol}
		c := tls.Client(b.dialRaw(), config)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	b.do("GET", "/", "", "")                                           // valid HTTP/2
	c := tls.Client(b.dialRaw(), &tls.Config{ServerName: "127.0.0.1"}) // a client that does not trust the certificate
	if err := c.Handshake(); err == nil {
		t.Fatal("the client trusts the certificate, want an error")
	}
	plain := b.dialRaw()
	io.WriteString(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	ended(t, plain)
	b.dialRaw().Close()
	b.wantRefused("tls_handshake 2")
	c = secure("http/1.1")
	io.WriteString(c, huge())
	ended(t, c)
	b.wantRefused("header_too_large 1, tls_handshake 2")

	framed := func() (*tls.Conn, *http2.Framer) {
		t.Helper()
		c := secure("h2")
		io.WriteString(c, http2.ClientPreface)
		f := http2.NewFramer(c, c)
		if err := f.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		return c, f
	}
	head := func(more ...hpack.HeaderField) []byte {
		var text bytes.Buffer
		e := hpack.NewEncoder(&text)
		for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/"}}, more...) {
			e.WriteField(f)
		}
		return text.Bytes()
	}
	c, f := framed() // a stream with a smaller number than the one before, which is invalid
	for _, id := range []uint32{3, 1} {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head(), EndStream: true, EndHeaders: true})
	}
	ended(t, c)
	b.wantRefused("header_too_large 1, http2 1, tls_handshake 2")
	c, f = framed() // a flood of pings whose answers the client never reads
	for i := range 1_000_000 {
		if err := f.WritePing(false, [8]byte{byte(i)}); err != nil {
			break
		}
	}
	c.Close()
	b.wantRefused("header_too_large 1, http2 2, tls_handshake 2")
	c, f = framed() // a header that net/http answers without calling the handler
	part := hpack.HeaderField{Name: "cookie", Value: strings.Repeat("x", 10<<10)}
	block := head(part, part, part, part)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16<<10], EndStream: true})
	f.WriteContinuation(1, false, block[16<<10:32<<10])
	f.WriteContinuation(1, true, block[32<<10:])
	b.wantRefused("header_too_large 2, http2 2, tls_handshake 2")
	c.Close()
	if log := b.logs.String(); !strings.Contains(log, `"reason":"tls_handshake","count":1`) || !strings.Contains(log, "remote error: tls: bad certificate") {
		t.Errorf("the log does not report the handshakes: %s, want %s in it, %q in it", log, `"reason":"tls_handshake","count":1`, "remote error: tls: bad certificate")
	}
}

// If the system gives out no more connections, the log reports it, because clients only see that they cannot connect.
func TestConnectionsThatTheSystemDoesNotGive(t *testing.T) {
	b := start(t, setup{listen: func(l net.Listener) net.Listener { return &exhausted{Listener: l} }})
	b.wantRefused("accept 1")
	if log := b.logs.String(); !strings.Contains(log, "LimitNOFILE") || !strings.Contains(log, "too many open files") {
		t.Errorf("the log does not say what is missing: %s, want %q in it, %q in it", log, "LimitNOFILE", "too many open files")
	}
}

// exhausted fails once, as a listener does in a process with too many open files.
type exhausted struct {
	net.Listener
	failed bool
}

func (e *exhausted) Accept() (net.Conn, error) {
	if !e.failed {
		e.failed = true
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return e.Listener.Accept()
}
