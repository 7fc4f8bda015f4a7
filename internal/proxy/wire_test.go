package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

// Each byte of a request to Ollama is known. Of the client's header it contains only Accept and User-Agent.
func TestBytesOnTheWire(t *testing.T) {
	for _, c := range []struct {
		name          string
		base          string
		header, value string
		r             Request
		want          string
	}{
		{
			"no body", "http://ollama.test:11434", "", "",
			Request{Method: "GET", Path: "/api/tags"},
			"GET /api/tags HTTP/1.1\r\nHost: ollama.test:11434\r\n\r\n",
		},
		{
			"body", "http://ollama.test:11434", "", "",
			Request{Method: "POST", Path: "/api/chat", Accept: "*/*", UserAgent: "curl/8", Body: dialect.Pieces{[]byte("{\"a\":\"ä\"}\n")}},
			"POST /api/chat HTTP/1.1\r\nHost: ollama.test:11434\r\nAccept: */*\r\nUser-Agent: curl/8\r\n" +
				"Content-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"a\":\"ä\"}\n",
		},
		{
			"empty body", "http://ollama.test", "", "",
			Request{Method: "DELETE", Path: "/api/delete", Body: dialect.Pieces{}},
			"DELETE /api/delete HTTP/1.1\r\nHost: ollama.test\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
		},
		{
			"credential", "http://[::1]:11434", "Authorization", "Bearer upstream",
			Request{Method: "HEAD", Path: "/"},
			"HEAD / HTTP/1.1\r\nHost: [::1]:11434\r\nAuthorization: Bearer upstream\r\n\r\n",
		},
		{
			"upload with a length", "http://ollama.test:11434", "", "",
			Request{Method: "POST", Path: "/api/blobs/sha256:00", Upload: strings.NewReader("hello, and more"), UploadLength: 5},
			"POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: ollama.test:11434\r\nContent-Length: 5\r\n\r\nhello",
		},
		{
			"upload in chunks", "http://ollama.test:11434", "X-Key", "k",
			Request{Method: "POST", Path: "/api/blobs/sha256:00", Upload: strings.NewReader("hello"), UploadLength: -1},
			"POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: ollama.test:11434\r\nX-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		},
		{
			"empty upload in chunks", "http://ollama.test:11434", "", "",
			Request{Method: "POST", Path: "/api/blobs/sha256:00", Upload: strings.NewReader(""), UploadLength: -1},
			"POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: ollama.test:11434\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			at, err := url.Parse(c.base)
			if err != nil {
				t.Fatal(err)
			}
			u := NewUpstream(dial.To(at, dial.Access{Header: c.header, Value: c.value}))
			near, far := net.Pipe()
			defer near.Close()
			sent := make(chan error, 1)
			go func() {
				err := u.send(newConn(near, nil), &c.r)
				near.Close()
				sent <- err
			}()
			got, err := io.ReadAll(far)
			if err != nil || string(got) != c.want {
				t.Errorf("error %v, got\n%q\nwant\n%q", err, got, c.want)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// A body of any size arrives unchanged, also after a User-Agent that is longer than the buffer.
func TestBodiesOfAllSizes(t *testing.T) {
	srv, u := fake(t)
	srv.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Body: "{}"} })
	n := 0
	for _, size := range []int{0, 1, 3 << 10, 4 << 10, 5 << 10, 1 << 20} {
		for _, agent := range []string{"", strings.Repeat("a", 5<<10)} {
			body := bytes.Repeat([]byte("x"), size)
			if got := fetch(t, u, &Request{Method: "POST", Path: "/api/chat", UserAgent: agent, Body: dialect.Pieces{body[:size/3], body[size/3:]}}); got != "200 {}" {
				t.Fatalf("size %d: got %q, want \"200 {}\"", size, got)
			}
			n++
			r := srv.WaitRequest(n)
			if !bytes.Equal(r.Body, body) || r.ContentLength != int64(size) || r.TransferEncoding != nil || r.Header.Get("User-Agent") != agent {
				t.Errorf("size %d: upstream got %d bytes, length %d", size, len(r.Body), r.ContentLength)
			}
		}
	}
	if n := srv.Connections(); n != 1 {
		t.Errorf("got %d connections, want 1", n)
	}
}

func TestHeadersOfAnswers(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	hints := func(n int) string { return strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", n) }
	padded := func(n int) string {
		const head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Pad: "
		return head + strings.Repeat("p", n-len(head)-len("\r\n\r\n")) + "\r\n\r\nok"
	}
	for _, c := range []struct {
		name, answer string
		good         bool
	}{
		{"plain", ok, true},
		{"1xx answers first", hints(maxInformal) + ok, true},
		{"too many 1xx answers", hints(maxInformal+1) + ok, false},
		{"100 without Expect", "HTTP/1.1 100 Continue\r\n\r\n" + ok, true},
		{"switching protocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + ok, false},
		{"switching after a hint", hints(1) + "HTTP/1.1 101 Switching Protocols\r\n\r\n" + ok, false},
		{"header of 64 KiB", padded(maxHeader), true},
		{"longer header", padded(maxHeader + 1), false},
		{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-More: and more\r\n", 1<<13), false},
		{"endless 1xx answers", strings.Repeat("HTTP/1.1 103 Hints\r\nX: "+strings.Repeat("x", 20<<10)+"\r\n\r\n", 4) + ok, false},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n", false},
		{"no status", "HTTP/1.1 \r\n\r\n", false},
		{"status under 100", "HTTP/1.1 099 Low\r\n\r\n" + ok, false},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", false},
		{"invalid length", "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", false},
		{"cut in the header", ok[:20], false},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv, u := fake(t)
			srv.Script("POST", "/api/chat", ollamatest.Answer{Raw: c.answer, Fault: ollamatest.Close, FaultAt: len(c.answer)})
			resp, err := u.Do(t.Context(), chatRequest())
			if !c.good {
				wantCode(t, err, api.CodeUpstreamError)
				if pooled(u) != 0 {
					t.Error("the connection was kept")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Close()
			if b, err := io.ReadAll(resp); string(b) != "ok" || err != nil || resp.Status != 200 {
				t.Errorf("got %d %q, %v; want 200 \"ok\"", resp.Status, b, err)
			}
		})
	}
}

func TestHeadHasNoBody(t *testing.T) {
	srv, u := fake(t)
	srv.Script("HEAD", "/api/tags", ollamatest.Answer{Raw: "HTTP/1.1 200 OK\r\nContent-Length: 337\r\nContent-Type: application/json; charset=utf-8\r\n\r\n"})
	for range 2 {
		resp, err := u.Do(t.Context(), &Request{Method: "HEAD", Path: "/api/tags"})
		if err != nil {
			t.Fatal(err)
		}
		if body, whole, err := resp.Head(1 << 10); len(body) != 0 || !whole || err != nil || resp.Length != 337 {
			t.Errorf("got %q, whole %v, %v, length %d; want no body, true, length 337", body, whole, err, resp.Length)
		}
		resp.Close()
	}
	if n := srv.Connections(); n != 1 {
		t.Errorf("got %d connections, want 1", n)
	}
}

// A redirect is an answer like any other: its target gets no request.
func TestRedirectIsNotFollowed(t *testing.T) {
	srv, u := fake(t)
	other := ollamatest.Start(t)
	srv.Script("POST", "/api/chat", ollamatest.Answer{Status: 307, Body: "-", Header: map[string][]string{"Location": {other.URL + "/api/chat"}}})
	if got := fetch(t, u, chatRequest()); got != "307 -" {
		t.Errorf("got %q, want \"307 -\"", got)
	}
	if n := other.Connections(); n != 0 {
		t.Error("the redirect was followed")
	}
}

// A body that breaks is never taken for a complete one.
func TestBrokenBodies(t *testing.T) {
	for name, raw := range map[string]string{
		"short of its length":     "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
		"no last chunk":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
		"cut chunk":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345",
		"no end after last chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n",
		"chunk without a size":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\nxyz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			srv, u := fake(t)
			srv.Script("POST", "/api/chat", ollamatest.Answer{Raw: raw, Fault: ollamatest.Close, FaultAt: len(raw)})
			resp, err := u.Do(t.Context(), chatRequest())
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp)
			wantCode(t, err, api.CodeUpstreamError)
			if string(b) != "12345" {
				t.Errorf("got %q before the break, want \"12345\"", b)
			}
			resp.Close()
			if pooled(u) != 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

// An upstream may refuse a large body without reading it, and close the connection. Its answer counts, not the failed write.
func TestRefusalBeforeTheBodyIsRead(t *testing.T) {
	base := script(t, func(_ int, c *net.TCPConn) {
		line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "POST") {
			t.Errorf("got the request line %q, %v; want a POST", line, err)
		}
		fmt.Fprint(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
		c.CloseWrite()
		// A close with unread bytes resets the connection while the gateway writes.
	})
	u := upstreamAt(t, base)
	r := &Request{Method: "POST", Path: "/api/chat", Body: dialect.Pieces{make([]byte, 32<<20)}}
	if got := fetch(t, u, r); got != "413 big" {
		t.Errorf("got %q, want \"413 big\"", got)
	}
	if pooled(u) != 0 {
		t.Error("the connection was kept")
	}
}
