package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ollama-api-service/internal/test/ollamatest"
)

var hoarding = flag.Duration("hoarding", time.Second, "how long each hoarder of TestMemoryCgroup sends")

// hoarder is what one key sends to fill the memory.
type hoarder struct {
	name, path string
	body       []byte
	coding     string
	endless    bool   // the rest of the body never comes
	policy     string // of the key
	answer     int    // bytes of each answer, which is not streamed and which the client does not read
	clients    int    // at one time; 0 is 60
}

func zstded(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(z, text)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hoarders(t *testing.T) []hoarder {
	const chats, counts = "/v1/chat/completions", "/v1/messages/count_tokens"
	chat := func(content string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":"` + content + `"}]}`
	}
	with := func(field string) string { return strings.TrimSuffix(chat("x"), "}") + "," + field + "}" }
	list := func(n int, one func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(one(i))
			b.WriteByte(',')
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	long := chat(strings.Repeat("lorem ipsum dolor sit amet ", 12<<20/27))
	// Text that does not shrink keeps the ratio of the compressed ones below its bound.
	shrinks := chat(noise(400<<10) + strings.Repeat("a", 24<<20))
	names := with(`"x":{` + list(199_000, func(i int) string { return fmt.Sprintf(`"%05x":1`, i) }) + `}`)
	longNames := with(`"x":{` + list(60_000, func(i int) string { return fmt.Sprintf(`"%060x":1`, i) }) + `}`)
	texts := `{"model":"tiny","messages":[` + list(60_000, func(int) string { return `{"role":"user","content":"a"}` }) + `]}`
	images := with(`"x":[` + list(300_000, func(int) string { return `"YQ=="` }) + `]`)
	schema := with(`"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{` +
		list(40_000, func(i int) string { return fmt.Sprintf(`"p%d":{"type":"string","pattern":"a+"}`, i) }) + `}}}}`)
	return []hoarder{
		{name: "long bodies", body: []byte(long), path: chats},
		{name: "gzip", body: []byte(zipped(t, shrinks)), coding: "gzip", path: chats},
		{name: "zstd", body: zstded(t, shrinks), coding: "zstd", path: chats},
		{name: "uploads that never end", body: []byte(long[:8<<20]), path: chats, endless: true},
		{name: "small uploads that never end", body: []byte(long[:15<<10]), path: chats, endless: true, clients: 1000},
		{name: "answers that no client reads", body: []byte(with(`"stream":false`)), path: chats, answer: 16 << 20},
		{name: "edited by policy", body: []byte(long), path: "/api/chat", policy: `{"max_tokens":"set:7"}`},
		{name: "many names", body: []byte(names), path: counts},
		{name: "many names, gzip", body: []byte(zipped(t, names)), coding: "gzip", path: chats},
		{name: "long names", body: []byte(longNames), path: chats},
		{name: "many messages", body: []byte(texts), path: chats},
		{name: "many short texts", body: []byte(images), path: chats},
		{name: "a large schema", body: []byte(schema), path: chats},
	}
}

// Whatever one key sends, the program lives in a memory cgroup of MAX_BODY_MEMORY and 150 MB, and the bodies of other keys are served.
func TestMemoryCgroup(t *testing.T) {
	const most, besides = 128 << 20, 150_000_000
	g := newMemoryGroup(t, most+besides)
	for _, h := range hoarders(t) {
		t.Run(h.name, func(t *testing.T) {
			began := time.Now()
			fake := ollamatest.Start(t)
			gate := make(chan struct{})
			answer := ollamatest.Answer{HeaderGate: gate}
			slots := "?slots=1"
			if h.answer > 0 {
				slots, answer = "?slots=64", ollamatest.Answer{Body: `{"choices":[{"message":{"content":"` + strings.Repeat("a", h.answer) + `"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`}
			}
			for _, path := range []string{"/v1/chat/completions", "/api/chat"} {
				fake.Handle("POST", path, func(*ollamatest.Request) ollamatest.Answer { return answer })
			}
			s, address := startCommand(t, t.TempDir(), fake.URL+slots, g.command(binary, "serve"), "MAX_BODY_MEMORY=128MiB", "MAX_BODY_BYTES=64MiB")
			s.URL = "http://" + address
			fields := `,"rate_limit":null`
			if h.policy != "" {
				fields += `,"policy":` + h.policy
			}
			greedy, other := s.makeKey(t, fields), s.makeKey(t, `,"rate_limit":null`)
			ctx, stop := context.WithCancel(t.Context())
			var all sync.WaitGroup
			statuses := make(chan int, 100_000)
			for range max(h.clients, 60) {
				all.Go(func() {
					for ctx.Err() == nil {
						statuses <- h.send(ctx, t, address, greedy.Secret)
					}
				})
			}
			served, refused := 0, map[int]int{}
			for end := time.Now().Add(*hoarding); served < 10 || time.Now().Before(end); served++ {
				a := call(t, "POST", s.URL+"/v1/messages/count_tokens", other.Secret, `{"model":"tiny","messages":[{"role":"user","content":"`+strings.Repeat("lorem ipsum ", 25_000)+`"}]}`)
				if a.Status != http.StatusOK {
					t.Errorf("a body of 300 KB of another key: got %d %s, want 200", a.Status, a.Body)
				}
			}
			stop()
			all.Wait()
			close(gate)
			close(statuses)
			for status := range statuses {
				refused[status]++
			}
			peak := peakMemory(t, s)
			t.Logf("the peak is %d MB in %s; %d bodies of the other key were served, and the greedy one got %v", peak/1_000_000, time.Since(began).Round(time.Second/10), served, refused)
			if n := g.killed(t); n > 0 || peak > most+besides {
				t.Errorf("the peak is %d MB, and the system ended %d programs; want at most %d MB and 0", peak/1_000_000, n, (most+besides)/1_000_000)
			}
		})
	}
}

// send sends one request, and returns the status of the answer; 0 for none before ctx ended.
func (h *hoarder) send(ctx context.Context, t *testing.T, address, key string) int {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return 0
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	length := len(h.body)
	if h.endless {
		length = 60 << 20
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n", h.path, key, length)
	if h.coding != "" {
		head += "Content-Encoding: " + h.coding + "\r\n"
	}
	if h.answer > 0 {
		conn.(*net.TCPConn).SetReadBuffer(4096)
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		return 0
	}
	go func() { _, _ = conn.Write(h.body) }()
	status := 0
	first := make([]byte, 64)
	if n, err := conn.Read(first); err == nil {
		fmt.Sscanf(string(first[:n]), "HTTP/1.1 %d", &status)
	}
	if h.answer > 0 || h.endless && status == 0 {
		<-ctx.Done()
	} else if status != 0 {
		_, _ = io.CopyN(io.Discard, conn, 100)
	}
	return status
}
