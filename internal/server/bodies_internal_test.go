package server

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// zipped compresses text with zstd, as a stream with a window.
func zipped(t *testing.T, window int, texts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil { // so that the encoder does not know the size
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The window of a decoder is memory of the body, too: many small bodies of one key must not exceed the bound with it.
func TestDecodersAreCounted(t *testing.T) {
	block := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{1}).Read(block)
	blocks := make([][]byte, 90)
	for i := range blocks {
		blocks[i] = block
	}
	body := zipped(t, maxWindow, blocks...)
	s := &Server{}
	s.bodies.most = 96 << 20
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	base := int64(m.HeapAlloc)
	var all sync.WaitGroup
	var decoded atomic.Int64
	for range 100 { // the rate limit of a new key
		all.Go(func() {
			x := &exchange{s: s, r: httptest.NewRequest("POST", "/v1/chat/completions", nil), sender: sender{key: &api.Key{Preview: "oas_8rT2kLmN0q"}}}
			defer x.releaseBody()
			if x.hold(len(body)) != nil {
				return
			}
			x.body = dialect.BodyOf(bytes.Clone(body))
			if x.decode("zstd", 128<<20) == nil {
				decoded.Add(1)
			}
		})
	}
	done := make(chan bool)
	go func() { all.Wait(); close(done) }()
	var beyond int64
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
			runtime.GC()
			runtime.ReadMemStats(&m)
			beyond = max(beyond, int64(m.HeapAlloc)-base-s.bodies.most)
		}
	}
	if beyond > 8<<20 || decoded.Load() == 0 {
		t.Errorf("%d of 100 bodies of %d KB are decoded, and hold %d MB beyond MAX_BODY_MEMORY; want at least one, and at most 8 MB", decoded.Load(), len(body)>>10, beyond>>20)
	}
}

// A decoder is counted with the window that its body needs, and uses no more than that.
func TestADecoderCountsByItsWindow(t *testing.T) {
	text := bytes.Repeat([]byte("all work and no play "), 2000)
	whole, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	small := zipped(t, 64<<10, text, text)
	for name, c := range map[string]struct {
		body   []byte
		window int
		want   string // a part of the error
	}{
		"a small window":             {small, 64 << 10, ""},
		"the largest":                {zipped(t, maxWindow, text, text), maxWindow, ""},
		"one that is too large":      {zipped(t, 2*maxWindow, text, text), maxWindow, "window"},
		"one frame of a known size":  {whole.EncodeAll(text, nil), len(text), ""},
		"a larger frame behind":      {append(bytes.Clone(small), zipped(t, maxWindow, text, text)...), 64 << 10, "window"},
		"a frame of the same behind": {append(bytes.Clone(small), small...), 64 << 10, ""},
		"a frame to be passed over":  {append([]byte("\x50\x2a\x4d\x18\x01\x00\x00\x00x"), small...), maxWindow, ""},
		"one that says 4 GiB":        {[]byte("\x28\xb5\x2f\xfd\xa0\xff\xff\xff\xff\x01\x00\x00"), maxWindow, "window"},
		"no zstd":                    {[]byte("{}"), maxWindow, "not what its Content-Encoding says"},
		"the beginning of one":       {small[:5], maxWindow, "not what its Content-Encoding says"},
	} {
		x := &exchange{s: &Server{}, r: httptest.NewRequest("POST", "/v1/chat/completions", nil), sender: sender{key: &api.Key{Preview: "oas_8rT2kLmN0q"}}}
		x.s.bodies.most = 64 << 20
		if got := windowOf("zstd", c.body); got != c.window {
			t.Errorf("%s: a window of %d bytes, want %d", name, got, c.window)
		}
		x.body = dialect.BodyOf(c.body)
		err := x.decode("zstd", 1<<20)
		var known *api.Error
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &known) || known.Code != api.CodeBadRequest || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
