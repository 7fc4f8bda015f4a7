package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/test/ollamatest"
)

const blobPath = "/api/blobs/sha256:00"

func upload(r io.Reader, length int64) *Request {
	return &Request{Method: "POST", Path: blobPath, Upload: r, UploadLength: length}
}

func TestUploads(t *testing.T) {
	srv, u := fake(t)
	srv.Handle("POST", blobPath, func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Status: 201} })
	random := rand.NewChaCha8([32]byte{1})
	n := 0
	for _, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 200_001} {
		blob := make([]byte, size)
		random.Read(blob)
		for _, length := range []int64{int64(size), -1} {
			// A reader that returns uneven pieces, as a slow client does.
			if got := fetch(t, u, upload(iotest.HalfReader(bytes.NewReader(blob)), length)); got != "201 " {
				t.Fatalf("got %q, want \"201 \"", got)
			}
			n++
			r := srv.WaitRequest(n)
			if !bytes.Equal(r.Body, blob) || r.ContentLength != length || (length < 0) != (len(r.TransferEncoding) == 1) {
				t.Errorf("size %d, length %d: upstream got %d bytes, length %d, encoding %v", size, length, len(r.Body), r.ContentLength, r.TransferEncoding)
			}
			if r.Conn != n {
				t.Errorf("upload %d went over connection %d, want its own connection %d", n, r.Conn, n)
			}
		}
	}
	if pooled(u) != 0 {
		t.Error("the connection of an upload was kept")
	}
}

// An upload gets a new connection even if the pool has one, and an upload that fails is not sent again.
func TestUploadIsNotRetried(t *testing.T) {
	srv, u := fake(t)
	fetch(t, u, &Request{Method: "GET", Path: "/api/version"})
	srv.Script("POST", blobPath, ollamatest.Answer{Fault: ollamatest.Close})
	_, err := u.Do(t.Context(), upload(strings.NewReader("hello"), 5))
	wantCode(t, err, api.CodeUpstreamError)
	if n := len(srv.RequestsTo("POST", blobPath)); n != 1 {
		t.Errorf("the upload was sent %d times, want once", n)
	}
	if r := srv.WaitRequestTo(1, "POST", blobPath); r.Conn != 2 {
		t.Errorf("the upload went over connection %d, want the new connection 2", r.Conn)
	}
}

// Ollama answers the upload of a blob that it already has without reading the blob.
func TestEarlyAnswerToAnUpload(t *testing.T) {
	t.Run("body read and discarded", func(t *testing.T) {
		srv, u := fake(t)
		srv.Script("POST", blobPath, ollamatest.Answer{Status: 200, Early: true})
		for _, length := range []int64{1 << 20, -1} {
			if got := fetch(t, u, upload(bytes.NewReader(make([]byte, 1<<20)), length)); got != "200 " {
				t.Errorf("got %q, want \"200 \"", got)
			}
		}
	})
	for name, abort := range map[string]func(*net.TCPConn){
		"half closed": func(c *net.TCPConn) { c.CloseWrite() },
		"reset":       func(*net.TCPConn) {},
	} {
		for _, length := range []int64{1 << 30, -1} {
			t.Run(name, func(t *testing.T) {
				base := script(t, func(_ int, c *net.TCPConn) {
					c.Read(make([]byte, 100))
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					abort(c)
				})
				u := upstreamAt(t, base)
				sent := &counted{r: endless{}}
				if got := fetch(t, u, upload(sent, length)); got != "200 " {
					t.Errorf("got %q, want \"200 \"", got)
				}
				if sent.n > 64<<20 {
					t.Errorf("sent %d MiB to a server that reads none, want at most 64", sent.n>>20)
				}
				if pooled(u) != 0 {
					t.Error("the connection was kept")
				}
			})
		}
	}
}

func TestUploadThatUpstreamAborts(t *testing.T) {
	base := script(t, func(_ int, c *net.TCPConn) { c.Read(make([]byte, 100)) })
	_, err := upstreamAt(t, base).Do(t.Context(), upload(endless{}, -1))
	wantCode(t, err, api.CodeUpstreamError)
}

// If the client aborts its upload, the failure is the client's: upstream sees a broken body, and the gateway does not wait for its answer.
func TestUploadThatTheClientAborts(t *testing.T) {
	for _, length := range []int64{12, -1} {
		for name, c := range map[string]struct {
			r    io.Reader
			code api.Code
		}{
			"connection lost":    {io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(io.ErrUnexpectedEOF)), api.CodeClientGone},
			"refused on the way": {iotest.ErrReader(api.Errorf(api.CodeTooLarge, "no more")), api.CodeTooLarge},
			"other error":        {iotest.ErrReader(errors.New("odd")), api.CodeClientGone},
			"less than it said":  {strings.NewReader("hello"), api.CodeClientGone},
		} {
			if name == "less than it said" && length < 0 {
				continue
			}
			t.Run(name, func(t *testing.T) {
				ended := make(chan []byte, 1)
				base := script(t, func(_ int, c *net.TCPConn) {
					all, _ := io.ReadAll(c)
					ended <- all
				})
				u := upstreamAt(t, base)
				_, err := u.Do(t.Context(), upload(c.r, length))
				wantCode(t, err, c.code)
				if got := <-ended; bytes.HasSuffix(got, []byte("0\r\n\r\n")) {
					t.Errorf("upstream got a proper end: %q; want a broken body", got)
				}
			})
		}
	}
}

func TestCancelledUpload(t *testing.T) {
	for _, length := range []int64{1 << 40, -1} {
		begun, ended := make(chan bool), make(chan bool)
		base := script(t, func(_ int, c *net.TCPConn) {
			c.Read(make([]byte, 100))
			close(begun)
			io.Copy(io.Discard, c)
			close(ended)
		})
		ctx, cancel := context.WithCancel(t.Context())
		u := upstreamAt(t, base)
		failed := make(chan error, 1)
		go func() { _, err := u.Do(ctx, upload(endless{}, length)); failed <- err }()
		<-begun
		cancel()
		<-ended
		wantCode(t, <-failed, api.CodeClientGone)
	}
}

// endless is a body that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
