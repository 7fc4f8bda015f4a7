package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// upstreamAt returns a pool for the server at base. The test closes it.
func upstreamAt(t testing.TB, base string) *Upstream {
	t.Helper()
	at, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	u := NewUpstream(dial.To(at, dial.Access{}))
	t.Cleanup(u.Close)
	return u
}

// fake returns a scripted Ollama and a pool for it.
func fake(t testing.TB) (*ollamatest.Server, *Upstream) {
	t.Helper()
	srv := ollamatest.Start(t)
	return srv, upstreamAt(t, srv.URL)
}

// piped returns a pool with one connection, which is a pipe to the test. Its deadlines follow the clock of synctest.
func piped(t testing.TB) (*Upstream, net.Conn) {
	u := upstreamAt(t, "http://ollama.test:11434")
	near, far := net.Pipe()
	u.give(newConn(near, nil))
	u.idle[0].used = false
	t.Cleanup(func() { far.Close() })
	return u, far
}

// script starts a server on a real socket that passes each connection to serve and closes it afterwards. It returns the base URL.
func script(t testing.TB, serve func(n int, c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(n, c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return "http://" + l.Addr().String()
}

// readRequest reads one request from a connection.
func readRequest(t testing.TB, in *bufio.Reader) *http.Request {
	r, err := http.ReadRequest(in)
	if err != nil {
		t.Errorf("read the request: %v", err)
		return nil
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Errorf("read the body: %v", err)
	}
	return r
}

// chatRequest returns a request that the fake answers with a stream.
func chatRequest() *Request {
	return &Request{Method: "POST", Path: "/api/chat", Body: dialect.Pieces{[]byte(`{"model":"tiny","messages":[{"role":"user","content":"x"}]}`)}}
}

// fetch sends a request and returns its status and whole body.
func fetch(t testing.TB, u *Upstream, r *Request) string {
	t.Helper()
	resp, err := u.Do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	body, err := io.ReadAll(resp)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.Status, body)
}

func wantCode(t testing.TB, err error, code api.Code) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
}

// within runs f, which must return within ten seconds.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not end within 10 s", what)
	}
}

func pooled(u *Upstream) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.idle)
}
