package server_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// Streams on one connection follow each other in order, also if the second request came with the first. Their framing is that of the
// protocol, and only an answer in HTTP/1.1 with keep-alive leaves the connection open.
func TestStreamsOnOneConnection(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		b := start(t, setup{http2: secure})
		key := b.user()
		b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Tokens: 30} })
		const body = `{"model":"tiny","messages":[]}`
		request := func(protocol, more string) string {
			return fmt.Sprintf("POST /api/chat HTTP/%s\r\nHost: x\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n%s",
				protocol, key, more, len(body), body)
		}
		want := strings.Join(ollamatest.ChatLines("tiny", 17, 30), "")
		for _, c := range []struct {
			name, requests string
			answers        int
			chunked        bool
		}{
			{"one after the other", request("1.1", "") + request("1.1", "") + request("1.1", "Connection: close\r\n") + request("1.1", ""), 3, true},
			{"HTTP/1.0", request("1.0", "") + request("1.0", ""), 1, false},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				conn := b.connect(t, secure)
				if _, err := io.WriteString(conn, c.requests); err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(conn)
				for i := range c.answers {
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatalf("answer %d: %v", i+1, err)
					}
					text, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(text) != want || (len(resp.TransferEncoding) > 0) != c.chunked {
						t.Errorf("answer %d: %v, chunks %v, got\n%s\nwant\n%s", i+1, err, resp.TransferEncoding, text, want)
					}
				}
				if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
					t.Errorf("after the last answer: got %q, %v, want the end of the connection", rest, err)
				}
			})
		}
	}
}

// connect opens a connection to the server that speaks HTTP/1.
func (b *bed) connect(t *testing.T, secure bool) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", parseURL(t, b.url).Host)
	if err == nil && secure {
		_, trust := testTLS()
		trust.ServerName, trust.NextProtos = "127.0.0.1", []string{"http/1.1"}
		conn = tls.Client(conn, trust)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A request that the client sends while its stream runs is answered after the stream. A stop ends a connection that waits for its next
// request, and a stream that is too long.
func TestEarlyRequestAndStopOfAStream(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	gate := make(chan struct{})
	b.ollama.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 5, Gate: gate}, ollamatest.Answer{Tokens: 3},
		ollamatest.Answer{Tokens: 50, Fault: ollamatest.Hang, FaultAt: 1000})
	const body = `{"model":"tiny","messages":[]}`
	request := fmt.Sprintf("POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", key, len(body), body)
	waits, streams := b.connect(t, false), b.connect(t, false)
	send := func(conn net.Conn) {
		t.Helper()
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	r := bufio.NewReader(waits)
	send(waits)
	gate <- struct{}{}
	gate <- struct{}{}
	first, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(waits) // in the middle of the first stream
	close(gate)
	for i, n := range []int{5, 3} {
		if i > 0 {
			if first, err = http.ReadResponse(r, nil); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(first.Body)
		first.Body.Close()
		if want := strings.Join(ollamatest.ChatLines("tiny", 17, n), ""); err != nil || string(text) != want {
			t.Errorf("stream %d: %v, got\n%s\nwant\n%s", i+1, err, text, want)
		}
	}
	send(streams)
	long, err := http.ReadResponse(bufio.NewReader(streams), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("the connection that waited: got %q, %v, want its end", rest, err)
	}
	text, err := io.ReadAll(long.Body)
	long.Body.Close()
	if err == nil || !strings.Contains(string(text), "the gateway is stopping") {
		t.Errorf("the stream that was too long: got %v and\n%s\nwant the error record and a broken connection", err, text)
	}
}
