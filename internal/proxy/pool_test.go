package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

func TestOneConnectionServesManyRequests(t *testing.T) {
	srv, u := fake(t)
	for range 50 {
		fetch(t, u, &Request{Method: "GET", Path: "/api/version"})
		fetch(t, u, chatRequest())
		fetch(t, u, &Request{Method: "HEAD", Path: "/"})
		fetch(t, u, &Request{Method: "GET", Path: "/nothing"})
	}
	if n := srv.Connections(); n != 1 {
		t.Errorf("200 requests made %d connections, want 1", n)
	}
}

func TestConcurrentRequestsShareNoConnection(t *testing.T) {
	srv, u := fake(t)
	const clients, each = 16, 20
	srv.Handle("POST", "/api/chat", func(r *ollamatest.Request) ollamatest.Answer {
		return ollamatest.Answer{Body: string(r.Body)} // the answer shows whose it is
	})
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for j := range each {
				body := strings.Repeat(string(rune('a'+i)), 1+j*400)
				resp, err := u.Do(t.Context(), &Request{Method: "POST", Path: "/api/chat", Body: dialect.Pieces{[]byte(body)}})
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp)
				resp.Close()
				if err != nil || string(got) != body {
					t.Errorf("client %d got %d bytes %.10q…, %v; want %d bytes %.10q…", i, len(got), got, err, len(body), body)
				}
			}
		})
	}
	all.Wait()
	if n := srv.Connections(); n > clients {
		t.Errorf("got %d connections for %d concurrent requests, want at most one for each", n, clients)
	}
}

// Upstream looks at a pooled connection before it sends a request, and so finds one that the server has closed.
func TestClosedPooledConnectionIsReplaced(t *testing.T) {
	srv, u := fake(t)
	fetch(t, u, chatRequest())
	first := srv.WaitRequest(1)
	first.WaitAnswered()
	srv.CloseConnections()
	first.WaitClosed()
	fetch(t, u, chatRequest())
	if n := srv.Connections(); n != 2 {
		t.Errorf("got %d connections, want 2", n)
	}
	if n := len(srv.Requests()); n != 2 {
		t.Errorf("got %d requests, want 2", n)
	}
}

// If the server closes just as the request comes, looking at the connection cannot find that. The request is sent once more.
func TestStaleConnectionIsRetriedOnce(t *testing.T) {
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, c := range []struct {
		name    string
		answers []string // each connection's answer to its last request; "" closes without an answer
		code    api.Code
	}{
		{"new connection answers", []string{"", answer}, ""},
		{"new connection closes too", []string{"", ""}, api.CodeUpstreamError},
		{"one byte of an answer came", []string{"H"}, api.CodeUpstreamError},
		{"an informational answer came", []string{"HTTP/1.1 103 Early Hints\r\n\r\n"}, api.CodeUpstreamError},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			var seen int
			base := script(t, func(n int, conn *net.TCPConn) {
				in := bufio.NewReader(conn)
				if n == 1 {
					readRequest(t, in)
					io.WriteString(conn, answer)
				}
				readRequest(t, in)
				mu.Lock()
				seen++
				mu.Unlock()
				if n <= len(c.answers) {
					io.WriteString(conn, c.answers[n-1])
				}
			})
			u := upstreamAt(t, base)
			fetch(t, u, chatRequest())
			resp, err := u.Do(t.Context(), chatRequest())
			if c.code != "" {
				wantCode(t, err, c.code)
			} else if err != nil {
				t.Fatal(err)
			} else {
				if b, err := io.ReadAll(resp); string(b) != "ok" || err != nil {
					t.Errorf("got %q, %v; want \"ok\"", b, err)
				}
				resp.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			if seen != len(c.answers) {
				t.Errorf("the request was sent %d times, want %d", seen, len(c.answers))
			}
		})
	}
}

// A request that changes the server never goes over a connection that may be stale, so it never needs to be sent again.
func TestOnceIsOnce(t *testing.T) {
	srv, u := fake(t)
	for n := range 3 {
		fetch(t, u, chatRequest()) // leaves a connection in the pool
		r := &Request{Method: "POST", Path: "/api/copy", Body: dialect.Pieces{[]byte("{}")}, Once: true}
		srv.Script("POST", "/api/copy", ollamatest.Answer{Fault: ollamatest.Close})
		if n == 2 {
			srv.Script("POST", "/api/copy", ollamatest.Answer{Body: "{}"})
			if got := fetch(t, u, r); got != "200 {}" {
				t.Errorf("got %q, want \"200 {}\"", got)
			}
			continue
		}
		_, err := u.Do(t.Context(), r)
		wantCode(t, err, api.CodeUpstreamError)
	}
	if n := len(srv.RequestsTo("POST", "/api/copy")); n != 3 {
		t.Errorf("three requests were sent %d times, want 3", n)
	}
}

func TestFreshConnectionIsNotRetried(t *testing.T) {
	srv, u := fake(t)
	srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Close})
	_, err := u.Do(t.Context(), chatRequest())
	wantCode(t, err, api.CodeUpstreamError)
	if n := len(srv.Requests()); n != 1 {
		t.Errorf("the request was sent %d times, want once", n)
	}
}

// Some servers send bytes before they close an idle connection. These bytes must not be read as an answer.
func TestUnaskedBytesAreNoAnswer(t *testing.T) {
	answered, unasked := make(chan struct{}), make(chan struct{})
	base := script(t, func(n int, c *net.TCPConn) {
		in := bufio.NewReader(c)
		if readRequest(t, in) == nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		if n == 2 {
			return
		}
		<-answered
		io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 6\r\n\r\nsecret")
		close(unasked)
		io.Copy(io.Discard, c) // until the peer closes
	})
	u := upstreamAt(t, base)
	resp, err := u.Do(t.Context(), chatRequest())
	if err != nil {
		t.Fatal(err)
	}
	if body, whole, err := resp.Head(100); string(body) != "ok" || !whole || err != nil {
		t.Fatalf("got %q, whole %v, %v; want \"ok\", true", body, whole, err)
	}
	resp.Close()
	if pooled(u) != 1 {
		t.Fatal("the connection is not in the pool")
	}
	close(answered)
	<-unasked
	if got := fetch(t, u, chatRequest()); got != "200 ok" {
		t.Errorf("the next request got %q, want \"200 ok\"", got)
	}
}

func TestCancelClosesTheConnection(t *testing.T) {
	gate := make(chan struct{})
	for _, c := range []struct {
		name   string
		answer ollamatest.Answer
		read   bool
	}{
		{"while waiting for the header", ollamatest.Answer{HeaderGate: gate}, false},
		{"in the middle of a stream", ollamatest.Answer{Chunks: []string{"{}\n", "{}\n"}, Gate: gate}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, u := fake(t)
			fetch(t, u, &Request{Method: "GET", Path: "/api/version"}) // so that the chat uses a pooled connection
			srv.Script("POST", "/api/chat", c.answer)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				resp, err := u.Do(ctx, chatRequest())
				if err == nil {
					_, err = io.ReadAll(resp)
					resp.Close()
				}
				failed <- err
			}()
			r := srv.WaitRequestTo(1, "POST", "/api/chat")
			if c.read {
				gate <- struct{}{}
			}
			cancel()
			r.WaitClosed()
			wantCode(t, <-failed, api.CodeClientGone)
			if n := pooled(u); n != 0 {
				t.Errorf("got %d connections in the pool, want 0", n)
			}
			if n := len(srv.RequestsTo("POST", "/api/chat")); n != 1 {
				t.Errorf("the request was sent %d times, want once", n)
			}
		})
	}
}

// A request is not sent if its client has already left.
func TestCancelledRequestIsNotSent(t *testing.T) {
	srv, u := fake(t)
	fetch(t, u, &Request{Method: "GET", Path: "/api/version"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := u.Do(ctx, chatRequest())
	wantCode(t, err, api.CodeClientGone)
	if n := pooled(u); n != 1 {
		t.Errorf("got %d connections in the pool, want the one from before", n)
	}
	fetch(t, u, &Request{Method: "GET", Path: "/api/version"})
	if n := len(srv.Requests()); n != 2 {
		t.Errorf("got %d requests, want 2", n)
	}
}

// The context of a request ends while its answer is closed. In either order, the pool has only open connections.
func TestCancelledConnectionIsNeverPooled(t *testing.T) {
	srv, u := fake(t)
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := u.Do(ctx, &Request{Method: "GET", Path: "/api/version"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := resp.Head(1 << 10); err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		both.Go(cancel)
		both.Go(resp.Close)
		both.Wait()
		u.mu.Lock()
		for _, c := range u.idle {
			if c.closed.Load() {
				t.Error("a closed connection is in the pool")
			}
		}
		u.mu.Unlock()
	}

	// The context ends before Close, although the whole answer was read.
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := u.Do(ctx, &Request{Method: "GET", Path: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := resp.Head(1 << 10); err != nil {
		t.Fatal(err)
	}
	before := pooled(u)
	cancel()
	srv.WaitRequestTo(1, "GET", "/").WaitClosed()
	resp.Close()
	if n := pooled(u); n != before {
		t.Error("a cancelled connection is in the pool")
	}
}

func TestCloseBeforeTheEndClosesTheConnection(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer ollamatest.Answer
		read   int64
	}{
		{"nothing read", ollamatest.Answer{Tokens: 3}, 0},
		{"cut chunked", ollamatest.Answer{Tokens: 3}, 10},
		{"all but the last byte", ollamatest.Answer{Body: "12345"}, 4},
		{"the server closes", ollamatest.Answer{Body: "12345", CloseAfter: true}, -1},
		{"body without a length", ollamatest.Answer{Chunks: []string{"12345"}, UntilClose: true}, -1},
		{"HTTP/1.0", ollamatest.Answer{Raw: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"}, -1},
		{"more than its length", ollamatest.Answer{Raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!"}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, u := fake(t)
			srv.Script("POST", "/api/chat", c.answer)
			resp, err := u.Do(t.Context(), chatRequest())
			if err != nil {
				t.Fatal(err)
			}
			if c.read < 0 {
				_, err = io.ReadAll(resp)
			} else {
				_, err = io.CopyN(io.Discard, resp, c.read)
			}
			if err != nil {
				t.Fatal(err)
			}
			resp.Close()
			resp.Close() // a second call has no effect
			if n := pooled(u); n != 0 {
				t.Errorf("got %d connections in the pool, want 0", n)
			}
			if !resp.conn.closed.Load() {
				t.Error("the connection is open, want it closed")
			}
			if _, err := resp.Read(make([]byte, 1)); err == nil {
				t.Error("reading a closed answer succeeded, want an error")
			}
		})
	}
}

func TestPoolClosed(t *testing.T) {
	srv, u := fake(t)
	gate := make(chan struct{})
	srv.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 1, HeaderGate: gate})
	fetch(t, u, &Request{Method: "GET", Path: "/api/version"})
	got := make(chan string, 1)
	go func() { got <- fetch(t, u, chatRequest()) }()
	r := srv.WaitRequestTo(1, "POST", "/api/chat")
	u.Close()
	close(gate)
	if s := <-got; !strings.Contains(s, `"done":true`) {
		t.Errorf("the request under way got %q, want a complete answer", s)
	}
	r.WaitClosed() // its connection was not kept
	if n := pooled(u); n != 0 {
		t.Errorf("got %d connections in the pool, want 0", n)
	}
}

func TestPoolDropsUnusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := upstreamAt(t, "http://ollama.test")
		fresh := func() *conn {
			near, far := net.Pipe()
			t.Cleanup(func() { far.Close() })
			return newConn(near, nil)
		}
		old, busy := fresh(), fresh()
		u.give(old)
		for range 10 {
			u.give(busy)
			time.Sleep(maxIdleTime/9 + time.Second)
			if c := u.take(); c != busy {
				t.Fatal("take did not return the connection that was used last")
			}
		}
		u.give(busy)
		if !old.closed.Load() || pooled(u) != 1 {
			t.Errorf("got old connection open %v, %d in the pool; want false, 1", !old.closed.Load(), pooled(u))
		}
		time.Sleep(maxIdleTime + 1)
		if c := u.take(); c != nil || !busy.closed.Load() {
			t.Error("a connection that was unused for too long was handed out or left open")
		}
		for range maxIdle + 3 {
			u.give(fresh())
		}
		if n := pooled(u); n != maxIdle {
			t.Errorf("got %d connections in the pool, want %d", n, maxIdle)
		}
	})
}

func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + l.Addr().String()
	l.Close()
	_, err = upstreamAt(t, base).Do(t.Context(), chatRequest())
	wantCode(t, err, api.CodeNoBackend)
	if strings.Contains(api.AsError(err).Message, "127.0.0.1") {
		t.Error("the client's error message contains the server's address")
	}
}

func TestTLS(t *testing.T) {
	srv := ollamatest.StartTLS(t)
	u := upstreamAt(t, srv.URL)
	_, err := u.Do(t.Context(), chatRequest())
	wantCode(t, err, api.CodeNoBackend) // no trusted authority has signed its certificate
	if len(srv.Requests()) != 0 {
		t.Fatal("a request went to a server that is not trusted")
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate)
	u.target.Use(dial.Access{TLS: func() (*tls.Config, error) { return &tls.Config{RootCAs: roots}, nil }})
	big := &Request{Method: "POST", Path: "/api/chat", Body: dialect.Pieces{[]byte(`{"model":"tiny","messages":[{"content":"`), []byte(strings.Repeat("x", 100<<10)), []byte(`"}]}`)}}
	before := srv.Connections()
	for range 3 {
		if got := fetch(t, u, chatRequest()); !strings.Contains(got, `"done":true`) {
			t.Errorf("got %q, want a complete answer", got)
		}
		fetch(t, u, big)
	}
	if n := srv.Connections() - before; n != 1 {
		t.Errorf("got %d connections for six requests, want 1", n)
	}
	if r := srv.WaitRequest(2); !bytes.Equal(r.Body, big.Body.Bytes()) {
		t.Error("the large body arrived changed")
	}
	srv.WaitRequest(6).WaitAnswered()
	srv.CloseConnections()
	srv.WaitRequest(6).WaitClosed()
	fetch(t, u, chatRequest())

	ctx, cancel := context.WithCancel(t.Context())
	srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Hang})
	failed := make(chan error, 1)
	go func() { _, err := u.Do(ctx, chatRequest()); failed <- err }()
	r := srv.WaitRequest(8)
	cancel()
	r.WaitClosed()
	wantCode(t, <-failed, api.CodeClientGone)
}

// BenchmarkExchange measures one small request over a pooled connection, including the server's side.
func BenchmarkExchange(b *testing.B) {
	base := script(b, func(_ int, c *net.TCPConn) {
		in := bufio.NewReader(c)
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}")
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			c.Write(answer)
		}
	})
	u := upstreamAt(b, base)
	defer u.Close()
	r := chatRequest()
	r.FirstByte, r.Idle, r.Deadline = time.Minute, time.Minute, time.Now().Add(time.Hour)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		resp, err := u.Do(ctx, r)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := resp.Head(1 << 20); err != nil {
			b.Fatal(err)
		}
		resp.Close()
	}
}
