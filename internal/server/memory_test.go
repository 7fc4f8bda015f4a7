package server_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// The large bodies of all requests together have a bound. When it is reached, a request with another large body gets 503 with Retry-After,
// and small bodies still pass. When the large ones are done, all memory is free again.
func TestBodiesInMemoryAreBounded(t *testing.T) {
	const large = 900 << 10
	b := start(t, setup{slots: 8, change: func(o *server.Options) { o.BodyMemory = 3 << 20 }})
	key := b.user()
	gate := make(chan struct{})
	b.ollama.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{HeaderGate: gate} })
	body := func(n int) string {
		return `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"` + strings.Repeat("x", n) + `"}]}`
	}
	var all sync.WaitGroup
	held := 0
	for ; ; held++ {
		probe := b.do("POST", "/v1/messages/count_tokens", key, body(large))
		if probe.status == http.StatusServiceUnavailable {
			if probe.header.Get("Retry-After") == "" || !strings.Contains(probe.body, "MAX_BODY_MEMORY") {
				t.Errorf("got %v %s, want Retry-After and a message with MAX_BODY_MEMORY", probe.header, probe.body)
			}
			break
		}
		if probe.status != 200 || held > 5 {
			t.Fatalf("with %d large bodies held, one more got %d, want 503", held, probe.status)
		}
		all.Go(func() {
			if r := b.do("POST", "/api/chat", key, body(large)); r.status != 200 {
				t.Errorf("got %d %s, want 200", r.status, r.body)
			}
		})
		b.ollama.WaitRequestTo(held+1, "POST", "/api/chat")
	}
	if held == 0 {
		t.Error("no large body was accepted, want at least one")
	}
	if r := b.do("POST", "/v1/messages/count_tokens", key, body(10)); r.status != 200 {
		t.Errorf("a small body: %d %s, want 200", r.status, r.body)
	}
	close(gate)
	all.Wait()
	if r := b.do("POST", "/v1/messages/count_tokens", key, body(large)); r.status != 200 {
		t.Errorf("after all bodies were freed: got %d %s, want 200", r.status, r.body)
	}

	// The decoded size of a few compressed KiB counts too.
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	z.Write([]byte(body(large)))
	z.Close()
	small := start(t, setup{change: func(o *server.Options) { o.BodyMemory = 512 << 10 }})
	req := small.request("POST", "/v1/messages/count_tokens", small.user(), coded.String())
	req.Header.Set("Content-Encoding", "gzip")
	if r := small.send(req); r.status != http.StatusServiceUnavailable {
		t.Errorf("%d bytes that decode to %d: got %d %s, want %d", coded.Len(), large, r.status, r.body, http.StatusServiceUnavailable)
	}
}

// One body of the largest size fits into the least memory that the settings allow, even if compression hardly makes it smaller.
func TestOneBodyAlwaysFits(t *testing.T) {
	const most = 1 << 20
	b := start(t, setup{change: func(o *server.Options) { o.MaxBody, o.BodyMemory = most, 2*most }})
	key := b.user()
	noise := make([]byte, most*3/4)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	text := base64.StdEncoding.EncodeToString(noise)
	frame := `{"model":"tiny","messages":[{"role":"user","content":""}]}`
	body := strings.Replace(frame, `""`, `"`+text[:most-len(frame)]+`"`, 1)
	var stored bytes.Buffer // a coding that does not make it smaller
	z, err := gzip.NewWriterLevel(&stored, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	z.Write([]byte(body[:most-500] + `"}]}`))
	z.Close()
	noisy := byZstd(t, []byte(body[:most-500]+`"}]}`)) // its decoder has a window of 8 MiB, more than the bound on all bodies here
	for name, c := range map[string]struct{ body, coding string }{"plain": {body, ""}, "gzip": {stored.String(), "gzip"}, "zstd": {noisy, "zstd"}} {
		for _, chunked := range []bool{false, true} {
			req := b.request("POST", "/v1/messages/count_tokens", key, c.body)
			if c.coding != "" {
				req.Header.Set("Content-Encoding", c.coding)
			}
			if chunked {
				req.ContentLength = -1
			}
			if r := b.send(req); r.status != http.StatusOK {
				t.Errorf("%s of %d bytes, chunked %v: %d %s, want %d", name, len(c.body), chunked, r.status, r.body, http.StatusOK)
			}
		}
	}
	// Both the compressed and the decoded bytes count.
	less := start(t, setup{change: func(o *server.Options) { o.MaxBody, o.BodyMemory = most, most*3/2 }})
	req := less.request("POST", "/v1/messages/count_tokens", less.user(), stored.String())
	req.Header.Set("Content-Encoding", "gzip")
	if r := less.send(req); r.status != http.StatusServiceUnavailable {
		t.Errorf("a body above the bound: got %d %s, want %d", r.status, r.body, http.StatusServiceUnavailable)
	}
}

// byZstd compresses text with zstd and the largest window that the gateway accepts, as a stream without a size.
func byZstd(t *testing.T, text []byte) string {
	t.Helper()
	var b strings.Builder
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	z.Write(text[:1])
	z.Flush()
	z.Write(text[1:])
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// One key always leaves memory for others, whether its bodies wait for a slot, never end, or are compressed.
func TestAKeyHasAShareOfTheMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	const large = 900 << 10
	body := `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"` + strings.Repeat("x", large) + `"}]}`
	var coded bytes.Buffer
	z := gzip.NewWriter(&coded)
	z.Write([]byte(body))
	z.Close()
	noise := make([]byte, large/2)
	rand.NewChaCha8([32]byte{2}).Read(noise)
	noisy := byZstd(t, []byte(strings.ReplaceAll(body, strings.Repeat("x", large), base64.StdEncoding.EncodeToString(noise))))
	for name, send := range map[string]func(ctx context.Context, b *bed, key string) *http.Request{
		"bodies": func(_ context.Context, b *bed, key string) *http.Request {
			return b.request("POST", "/v1/chat/completions", key, body)
		},
		"compressed bodies": func(_ context.Context, b *bed, key string) *http.Request {
			r := b.request("POST", "/v1/chat/completions", key, coded.String())
			r.Header.Set("Content-Encoding", "gzip")
			return r
		},
		"bodies by zstd": func(_ context.Context, b *bed, key string) *http.Request {
			r := b.request("POST", "/v1/chat/completions", key, noisy)
			r.Header.Set("Content-Encoding", "zstd")
			return r
		},
		"uploads that never end": func(ctx context.Context, b *bed, key string) *http.Request {
			r := b.request("POST", "/v1/chat/completions", key, "")
			never, more := io.Pipe()
			r.Body, r.ContentLength = never, -1
			go func() {
				_, _ = io.WriteString(more, body[:large])
				<-ctx.Done()
				more.Close()
			}()
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, setup{slots: 1, change: func(o *server.Options) { o.BodyMemory = 16 << 20 }})
			gate := make(chan struct{})
			b.ollama.Handle("POST", "/v1/chat/completions", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{HeaderGate: gate} })
			greedy, other := b.user(), b.user()
			ctx, stop := context.WithCancel(t.Context())
			refused := make(chan struct{}, 40)
			var all sync.WaitGroup
			for range 40 {
				r := send(ctx, b, greedy).WithContext(ctx)
				all.Go(func() {
					resp, err := b.client.Do(r)
					if err != nil {
						return
					}
					defer resp.Body.Close()
					if resp.StatusCode == http.StatusServiceUnavailable {
						refused <- struct{}{}
					}
				})
			}
			<-refused // the key has its share
			if r := b.do("POST", "/v1/messages/count_tokens", other, body); r.status != http.StatusOK {
				t.Errorf("the body of another key: got %d %s, want 200", r.status, r.body)
			}
			stop()
			close(gate)
			all.Wait()
		})
	}
}

// Bodies that are on their way are bounded also where they are small, with a share for each key; those that come at once do not count.
func TestUploadsAreBounded(t *testing.T) {
	b := start(t, setup{})
	b.server.BoundUploads(8)
	greedy, other := b.user(), b.user()
	begin := func(key string) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "POST /v1/messages/count_tokens HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 50\r\n\r\n{", key)
		return conn
	}
	uploads := func(want int64) {
		t.Helper()
		until(t, fmt.Sprintf("%d bodies on their way", want), 5*time.Second, func() bool { return b.server.Uploads() == want })
	}
	var conns []net.Conn
	for i := range int64(4) {
		conns = append(conns, begin(greedy))
		uploads(i + 1)
	}
	refused, err := http.ReadResponse(bufio.NewReader(begin(greedy)), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused.Body.Close()
	if refused.StatusCode != http.StatusServiceUnavailable || refused.Header.Get("Retry-After") == "" {
		t.Errorf("the fifth body on its way of a key: got %d %v, want 503 with Retry-After", refused.StatusCode, refused.Header)
	}
	conns = append(conns, begin(other))
	uploads(5)
	if r := b.do("POST", "/v1/messages/count_tokens", greedy, `{"model":"tiny","messages":[]}`); r.status != http.StatusOK {
		t.Errorf("a body that comes at once: got %d %s, want 200", r.status, r.body)
	}
	for _, conn := range conns {
		conn.Close()
	}
	uploads(0)
}
