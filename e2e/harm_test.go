package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// Whatever one key sends, the program uses at most MAX_BODY_MEMORY plus 150 MB, and the requests of other keys are served.
func TestOneKeyCannotFillTheMemory(t *testing.T) {
	const bodies, besides = 128 << 20, 150_000_000
	fake := ollamatest.Start(t)
	gate := make(chan struct{})
	fake.Handle("POST", "/v1/chat/completions", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{HeaderGate: gate} })
	s, address := startBare(t, t.TempDir(), fake.URL+"?slots=1", nil, "MAX_BODY_MEMORY=128MiB", "MAX_BODY_BYTES=64MiB")
	s.URL = "http://" + address
	greedy, other := s.makeKey(t, `,"rate_limit":null`), s.makeKey(t, ``)
	chat := func(n int) []byte {
		return []byte(`{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat("lorem ipsum dolor sit amet ", n/27) + `"}]}`)
	}
	packed := func(body []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(body)
		z.Close()
		return b.Bytes()
	}
	// Incompressible text keeps the compression ratio below the bound.
	large, decoded := chat(12<<20), packed([]byte(`{"model":"tiny","messages":[{"role":"user","content":"`+noise(400<<10)+strings.Repeat("a", 24<<20)+`"}]}`))
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 60 {
		body, coding := large, ""
		if i%2 == 0 {
			body, coding = decoded, "gzip"
		}
		all.Go(func() {
			r, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/v1/chat/completions", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+greedy.Secret)
			if coding != "" {
				r.Header.Set("Content-Encoding", coding)
			}
			resp, err := http.DefaultClient.Do(r)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	fake.WaitRequestTo(1, "POST", "/v1/chat/completions")
	for range 20 {
		r, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/v1/messages/count_tokens", bytes.NewReader(chat(300<<10)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+other.Secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("a body of 300 KB of another key: got %d %s, want 200", resp.StatusCode, text)
		}
	}
	stop()
	all.Wait()
	close(gate)
	peak := peakMemory(t, s)
	t.Logf("the peak is %d MB", peak/1_000_000)
	if peak > bodies+besides {
		t.Errorf("the peak is %d MB, want at most %d", peak/1_000_000, (bodies+besides)/1_000_000)
	}
}

// noise returns text that compresses badly.
func noise(n int) string {
	var b strings.Builder
	x := uint64(1)
	for b.Len() < n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b.WriteByte('0' + byte(x%64)%43)
	}
	return strings.NewReplacer(`"`, "x", `\`, "y").Replace(b.String())
}
