package e2e

import (
	"crypto/x509"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"ollama-api-service/internal/test/ollamatest"
)

// frameFlood is what a client can send in HTTP/2 without end. i numbers the frames.
type frameFlood struct {
	name  string
	ready func(p *peer, key string) // nil needs nothing
	frame func(p *peer, i uint32, key string) error
}

func frameFloods() []frameFlood {
	open := func(p *peer, key string) {
		p.send(func() error { return p.open(1, false, p.chat(key)) })
	}
	many := func(p *peer, key string) {
		for i := range uint32(99) {
			p.send(func() error { return p.open(2*i+1, false, p.chat(key)) })
		}
	}
	return []frameFlood{
		{"PING", nil, func(p *peer, _ uint32, _ string) error { return p.framer.WritePing(false, [8]byte{}) }},
		{"SETTINGS", nil, func(p *peer, _ uint32, _ string) error { return p.framer.WriteSettings() }},
		{"SETTINGS of windows with 99 streams", many, func(p *peer, i uint32, _ string) error {
			return p.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535 + i%2})
		}},
		{"large SETTINGS with 99 streams", many, func(p *peer, i uint32, _ string) error {
			all := make([]http2.Setting, 100)
			for j := range all {
				all[j] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535 + uint32(j)%2}
			}
			return p.framer.WriteSettings(all...)
		}},
		{"empty DATA", open, func(p *peer, _ uint32, _ string) error { return p.framer.WriteData(1, false, nil) }},
		{"padded DATA", open, func(p *peer, _ uint32, _ string) error {
			return p.framer.WriteDataPadded(1, false, nil, make([]byte, 10))
		}},
		{"DATA of a byte", open, func(p *peer, _ uint32, _ string) error { return p.framer.WriteData(1, false, []byte{' '}) }},
		{"RST_STREAM of one stream", open, func(p *peer, _ uint32, _ string) error { return p.framer.WriteRSTStream(1, http2.ErrCodeCancel) }},
		{"PRIORITY", nil, func(p *peer, i uint32, _ string) error {
			return p.framer.WritePriority(2*(i%1_000_000)+1, http2.PriorityParam{Weight: 3})
		}},
		{"WINDOW_UPDATE", open, func(p *peer, i uint32, _ string) error { return p.framer.WriteWindowUpdate(0, 1) }},
		{"WINDOW_UPDATE of a stream", open, func(p *peer, i uint32, _ string) error { return p.framer.WriteWindowUpdate(1, 1) }},
		{"unknown frames", nil, func(p *peer, i uint32, _ string) error { return p.framer.WriteRawFrame(0xf0, 0, 0, nil) }},
		// CVE-2024-27316.
		{"empty CONTINUATION", func(p *peer, key string) {
			p.send(func() error {
				return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(p.chat(key)...)})
			})
		}, func(p *peer, i uint32, _ string) error { return p.framer.WriteContinuation(1, false, nil) }},
		{"opened and reset", nil, func(p *peer, i uint32, key string) error { // CVE-2023-44487
			if err := p.open(2*i+1, false, p.chat(key)); err != nil {
				return err
			}
			return p.framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		{"opened and reset without a key", nil, func(p *peer, i uint32, _ string) error {
			if err := p.open(2*i+1, true, []string{":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/healthz"}); err != nil {
				return err
			}
			return p.framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
	}
}

// What a client sends in HTTP/2 that is no request ends its connection when it is too much; others are served meanwhile as if it were not there.
func TestFloodsOfFrames(t *testing.T) {
	a, files := newAuthority(t), newPair(t)
	files.renew(t, a)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil, "TLS_CERT="+files.cert, "TLS_KEY="+files.key)
	good := a.client(t)
	key := makeKeyWith(t, good, s)
	before := peakMemory(t, s)
	for _, f := range frameFloods() {
		t.Run(f.name, func(t *testing.T) {
			p := newPeer(t, s, roots)
			if f.ready != nil {
				f.ready(p, key)
			}
			sent, ended := 0, make(chan struct{})
			go func() {
				defer close(ended)
				for sent < 10_000_000 && p.send(func() (err error) {
					for range 100 {
						err = errors.Join(err, f.frame(p, uint32(sent), key))
						sent++
					}
					return err
				}) == nil {
				}
			}()
			var took []time.Duration
			for more := true; more; {
				select {
				case <-ended:
					more = false
				default:
				}
				began := time.Now()
				resp, err := good.Get(s.URL + "/healthz")
				if err != nil {
					t.Fatalf("another connection meanwhile: %v", err)
				}
				resp.Body.Close()
				took = append(took, time.Since(began))
			}
			how := p.refused(1 << 30) // no stream has that number
			slices.Sort(took)
			t.Logf("%s after %d frames; others: %d requests, median %s, longest %s", how, sent, len(took), took[len(took)/2].Round(time.Microsecond), took[len(took)-1].Round(time.Microsecond))
			if !regexp.MustCompile("^(GOAWAY (ENHANCE_YOUR_CALM|PROTOCOL_ERROR)|closed)$").MatchString(how) || sent >= 10_000_000 {
				t.Errorf("ended by %q after %d frames, want GOAWAY", how, sent)
			}
			if last(took) > 5*time.Second {
				t.Errorf("a request of another connection took %s", last(took))
			}
		})
	}
	if n := len(fake.RequestsTo("POST", "/api/chat")); n != 0 {
		t.Errorf("Ollama saw %d requests, want none", n)
	}
	if grown := peakMemory(t, s) - before; grown > 150<<20 {
		t.Errorf("the memory grew by %d MB, want at most 150", grown>>20)
	}
	if text := s.stdout.String(); !strings.Contains(text, `"reason":"http2"`) {
		t.Error("the log has no line about it")
	}
}

// Clients that cancel what they have begun, all at once and again and again, that ping often and that acknowledge each piece of an answer are
// served on one connection.
func TestLivelyClientsAreNoFlood(t *testing.T) {
	a, files := newAuthority(t), newPair(t)
	files.renew(t, a)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	fake := ollamatest.Start(t)
	const pieces = 20_000
	fake.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Tokens: pieces} })
	s := start(t, t.TempDir(), fake.URL, nil, "TLS_CERT="+files.cert, "TLS_KEY="+files.key, "DEFAULT_MAX_TOKENS=100000")
	key := makeKeyWith(t, a.client(t), s)
	p := newPeer(t, s, roots)
	stream := uint32(1)
	for range 3 {
		for range 100 {
			p.send(func() error {
				return errors.Join(p.open(stream, false, p.chat(key)), p.framer.WritePing(false, [8]byte{}))
			})
			stream += 2
		}
		for open := stream - 200; open < stream; open += 2 {
			p.send(func() error { return p.framer.WriteRSTStream(open, http2.ErrCodeCancel) })
		}
	}
	p.acknowledge.Store(true)
	p.send(func() error {
		return errors.Join(p.open(stream, false, p.chat(key)), p.framer.WriteData(stream, true, []byte(`{"model":"tiny","messages":[{"role":"user","content":"hi"}],"stream":true}`)))
	})
	p.await("the end of the answer", func() bool { return p.gone != nil || p.closed || strings.Contains(p.bodies[stream], `"done":true`) })
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone != nil || p.closed {
		t.Errorf("the connection ended: GOAWAY %v, closed %v", p.gone, p.closed)
	}
	if n := strings.Count(p.bodies[stream], "\n"); n < pieces {
		t.Errorf("%d pieces came, want %d", n, pieces)
	}
}
