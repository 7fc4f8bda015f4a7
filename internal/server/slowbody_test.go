package server

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener with connections in memory, so that tests in a synctest bubble can use them.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// overPipe serves one connection in memory with answer, and returns the client's side. Call end within the bubble.
func overPipe(t *testing.T, s *Server, answer func(*exchange)) (client net.Conn, end func()) {
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	h := &http.Server{ReadHeaderTimeout: headerTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(s.newExchange(w, r, &Live{}))
	})}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	client, conn := net.Pipe()
	l.conns <- conn
	return client, func() {
		client.Close()
		h.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

// A body without progress gets 408 after half a minute. A body that sends single bytes gets it later by the time that its bytes earn. A
// header has ten seconds. Each case ends the connection. (B52)
func TestABodyThatStops(t *testing.T) {
	const head = "POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct {
		name, send string
		drip       time.Duration // between the next bytes; 0 means no more bytes
		want       string
		least      time.Duration
		most       time.Duration
	}{
		{"half of a body", head + "Content-Length: 10\r\n\r\n12345", 0, "HTTP/1.1 408 ", bodyProgress, bodyProgress + time.Second},
		{"half of a chunk", head + "Transfer-Encoding: chunked\r\n\r\na\r\n12345", 0, "HTTP/1.1 408 ", bodyProgress, bodyProgress + time.Second},
		{"a body that drips", head + "Content-Length: 1000\r\n\r\n", 5 * time.Second, "HTTP/1.1 408 ", bodyProgress, bodyProgress + 10*time.Second},
		{"half of a header", "POST /v1/messages HTTP/1.1\r\nHos", 0, "", headerTimeout, headerTimeout + time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{Options: Options{Bounds: Bounds{MaxRequestTime: time.Hour}}, writeProgress: writeProgress}
				client, end := overPipe(t, s, func(x *exchange) {
					x.family = familyOf(x.r.URL.Path, x.r.Header)
					if _, err := x.readBody(1 << 20); err != nil {
						x.fail(err)
					}
				})
				defer end()
				began := time.Now()
				stop := make(chan struct{})
				go func() {
					_, err := io.WriteString(client, c.send)
					for err == nil && c.drip > 0 {
						select {
						case <-stop:
							return
						case <-time.After(c.drip):
							_, err = io.WriteString(client, "x")
						}
					}
				}()
				in := bufio.NewReader(client)
				answer, err := io.ReadAll(in)
				took := time.Since(began)
				close(stop)
				if err != nil || !strings.HasPrefix(string(answer), c.want) || took < c.least || took > c.most {
					t.Errorf("after %v: %v, %s, want %v at its start, at least %v, at most %v", took, err, answer, c.want, c.least, c.most)
				}
				if c.want != "" && (!strings.Contains(string(answer), "Connection: close") || !strings.Contains(string(answer), `"type":"error"`)) {
					t.Errorf("want an answer in the client's dialect that closes the connection, got %s", answer)
				}
			})
		})
	}
}
