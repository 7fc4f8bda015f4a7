package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ollama-api-service/internal/test/ollamatest"
)

// peer speaks HTTP/2 frame by frame, also such that no client would send.
type peer struct {
	t    *testing.T
	conn *tls.Conn

	writing sync.Mutex
	out     *bufio.Writer
	framer  *http2.Framer
	head    bytes.Buffer
	encoder *hpack.Encoder

	mu       sync.Mutex
	settings map[http2.SettingID]uint32
	resets   map[uint32]http2.ErrCode
	statuses map[uint32]string
	bodies   map[uint32]string
	gone     *http2.ErrCode // of a GOAWAY
	closed   bool
	// acknowledge has each piece of an answer acknowledged by two frames, as Dart's client does.
	acknowledge atomic.Bool
	read        chan struct{}
}

func newPeer(t *testing.T, s *service, roots *x509.CertPool) *peer {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"), &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{
		t: t, conn: conn, out: bufio.NewWriter(conn), settings: map[http2.SettingID]uint32{}, resets: map[uint32]http2.ErrCode{},
		statuses: map[uint32]string{}, bodies: map[uint32]string{}, read: make(chan struct{}),
	}
	p.framer = http2.NewFramer(p.out, conn)
	p.framer.AllowIllegalWrites = true
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.encoder = hpack.NewEncoder(&p.head)
	t.Cleanup(func() {
		conn.Close()
		<-p.read
	})
	p.out.WriteString(http2.ClientPreface)
	p.send(func() error { return p.framer.WriteSettings() })
	go p.listen()
	p.await("settings of the server", func() bool { return len(p.settings) > 0 })
	return p
}

// send writes frames. It is a good end if the gateway no longer accepts them.
func (p *peer) send(frames func() error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if err := frames(); err != nil {
		return err
	}
	return p.out.Flush()
}

func (p *peer) listen() {
	defer close(p.read)
	for {
		frame, err := p.framer.ReadFrame()
		p.mu.Lock()
		if err != nil {
			p.closed = true
			p.mu.Unlock()
			return
		}
		acknowledge := false
		var windows, stream uint32
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			acknowledge = !f.IsAck()
			f.ForeachSetting(func(s http2.Setting) error {
				p.settings[s.ID] = s.Val
				return nil
			})
		case *http2.RSTStreamFrame:
			if _, again := p.resets[f.StreamID]; !again {
				p.resets[f.StreamID] = f.ErrCode
			}
		case *http2.MetaHeadersFrame:
			p.statuses[f.StreamID] = f.PseudoValue("status")
		case *http2.DataFrame:
			p.bodies[f.StreamID] += string(f.Data())
			if n := uint32(len(f.Data())); n > 0 && p.acknowledge.Load() {
				windows, stream = n, f.StreamID
			}
		case *http2.GoAwayFrame:
			code := f.ErrCode
			p.gone = &code
		}
		p.mu.Unlock()
		if acknowledge {
			p.send(p.framer.WriteSettingsAck)
		}
		if windows > 0 {
			p.send(func() error {
				return errors.Join(p.framer.WriteWindowUpdate(0, windows), p.framer.WriteWindowUpdate(stream, windows))
			})
		}
	}
}

// await waits for what the server sends.
func (p *peer) await(what string, yes func() bool) {
	p.t.Helper()
	poll(p.t, what, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return yes()
	})
}

// refused waits until the server has ended the connection by GOAWAY, or the stream by RST_STREAM or a status of 4xx.
func (p *peer) refused(stream uint32) string {
	p.t.Helper()
	var how string
	p.await("refusal", func() bool {
		code, reset := p.resets[stream]
		switch status := p.statuses[stream]; {
		case p.gone != nil && *p.gone != http2.ErrCodeNo:
			how = "GOAWAY " + p.gone.String()
		case strings.HasPrefix(status, "4"):
			how = status
		case reset:
			how = "RST_STREAM " + code.String()
		case p.closed:
			how = "closed"
		}
		return how != ""
	})
	return how
}

// block is a header block. Of each field, the name comes first.
func (p *peer) block(fields ...string) []byte {
	p.head.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.head.Bytes())
}

// chat are the fields of a request that would be served.
func (p *peer) chat(key string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/api/chat", "authorization", "Bearer " + key}, more...)
}

// open sends a head in one frame.
func (p *peer) open(stream uint32, end bool, fields []string) error {
	return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.block(fields...), EndHeaders: true, EndStream: end})
}

// B104: what can be done wrong, or too much of, in HTTP/2 is answered by GOAWAY, RST_STREAM or 4xx; nothing of it reaches Ollama, others
// are served meanwhile, and memory stays bounded.
func TestHTTP2B104(t *testing.T) {
	a, files := newAuthority(t), newPair(t)
	files.renew(t, a)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL, nil, "TLS_CERT="+files.cert, "TLS_KEY="+files.key)
	good := a.client(t)
	key := makeKeyWith(t, good, s)
	served := 0 // by good
	chat := func() error {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/chat", strings.NewReader(`{`+ask+`}`))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		began := time.Now()
		res, err := good.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if served++; err != nil {
			return err
		}
		if took := time.Since(began); res.StatusCode != http.StatusOK || res.ProtoMajor != 2 || !strings.Contains(string(body), `"done":true`) || took > 5*time.Second {
			return fmt.Errorf("%s by %s after %v: %s", res.Status, res.Proto, took, body)
		}
		return nil
	}
	if err := chat(); err != nil {
		t.Fatal(err)
	}
	before := peakMemory(t, s)
	for _, row := range http2Rows {
		t.Run(row.name, func(t *testing.T) {
			p := newPeer(t, s, roots)
			meanwhile, done := make(chan error, 1), make(chan struct{})
			go func() {
				var errs error
				for more := true; more && errs == nil; { // and once more after the end
					select {
					case <-done:
						more = false
					case <-time.After(10 * time.Millisecond):
					}
					errs = chat()
				}
				meanwhile <- errs
			}()
			began := time.Now()
			defer func() {
				close(done)
				if err := <-meanwhile; err != nil {
					t.Errorf("another connection was not served meanwhile: %v", err)
				}
			}()
			how := row.attack(p, key)
			took := time.Since(began)
			t.Logf("%s after %v", how, took.Round(time.Millisecond))
			if !regexp.MustCompile("^(" + row.want + ")$").MatchString(how) {
				t.Errorf("ended by %q, want %q", how, row.want)
			}
			if took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if got := len(fake.RequestsTo("POST", "/api/chat")); got != served+1 {
		t.Errorf("Ollama saw %d requests, want the %d good ones and the one of a stream next to refused ones", got, served)
	}
	if grown := peakMemory(t, s) - before; grown > 128<<20 {
		t.Errorf("the service's memory grew by %d MiB", grown>>20)
	} else {
		t.Logf("memory grew by %d MiB from %d MiB", grown>>20, before>>20)
	}
}

var http2Rows = []struct {
	name, want string
	attack     func(p *peer, key string) string
}{
	{"limits are announced", "100 streams of 262144 bytes, heads of 33[0-9]{3}", func(p *peer, _ string) string {
		return fmt.Sprintf("%d streams of %d bytes, heads of %d", p.settings[http2.SettingMaxConcurrentStreams], p.settings[http2.SettingInitialWindowSize], p.settings[http2.SettingMaxHeaderListSize])
	}},
	// CVE-2023-44487.
	{"10,000 resets", "GOAWAY ENHANCE_YOUR_CALM|closed|served on", func(p *peer, key string) string {
		for i := range uint32(10_000) {
			if p.send(func() error {
				return errors.Join(p.open(2*i+1, false, p.chat(key)), p.framer.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
			}) != nil {
				break
			}
		}
		// Either the connection was given up, or it has worked all of it off.
		p.send(func() error {
			return p.open(20_001, true, []string{":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/healthz"})
		})
		how := ""
		p.await("end of the resets", func() bool {
			switch {
			case p.gone != nil:
				how = "GOAWAY " + p.gone.String()
			case p.closed:
				how = "closed"
			case p.statuses[20_001] == "200":
				how = "served on"
			}
			return how != ""
		})
		return how
	}},
	{"1,000 streams", "100 accepted, 900 refused, 200", func(p *peer, key string) string {
		for i := range uint32(1000) {
			if p.send(func() error { return p.open(2*i+1, false, p.chat(key)) }) != nil {
				break
			}
		}
		p.await("900 refusals", func() bool { return len(p.resets) >= 900 })
		p.send(func() error { return p.framer.WriteData(1, true, []byte(`{`+ask+`}`)) })
		p.await("answer on the first stream", func() bool { return p.statuses[1] != "" })
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Sprintf("%d accepted, %d refused, %s", 1000-len(p.resets), len(p.resets), p.statuses[1])
	}},
	// CVE-2023-45288.
	{"flood of CONTINUATION", "GOAWAY PROTOCOL_ERROR|closed", func(p *peer, key string) string {
		fragment := p.block("x-padding", strings.Repeat("x", 16_000))
		p.send(func() error {
			return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(p.chat(key)...)})
		})
		for range 10_000 { // 160 MB, if somebody took it
			if p.send(func() error { return p.framer.WriteContinuation(1, false, fragment) }) != nil {
				break
			}
		}
		return p.refused(1)
	}},
	{"NUL in :path", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR|400", func(p *peer, key string) string {
		return p.ask([]string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/api/chat\x00", "authorization", "Bearer " + key})
	}},
	{"line break in a field", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR", func(p *peer, key string) string {
		return p.ask(p.chat(key, "x-a", "b\r\nx-c: d"))
	}},
	{"upper case in a name", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR", func(p *peer, key string) string {
		return p.ask(p.chat(key, "X-Upper", "a"))
	}},
	{"transfer-encoding", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR|400", func(p *peer, key string) string {
		return p.ask(p.chat(key, "transfer-encoding", "chunked"))
	}},
	{"two paths", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR", func(p *peer, key string) string {
		return p.ask(append([]string{":path", "/healthz"}, p.chat(key)...))
	}},
	{"no :path", "RST_STREAM PROTOCOL_ERROR|GOAWAY PROTOCOL_ERROR", func(p *peer, _ string) string {
		return p.ask([]string{":method", "GET", ":scheme", "https", ":authority", "localhost"})
	}},
	{"body longer than its length", "RST_STREAM PROTOCOL_ERROR|4..", func(p *peer, key string) string {
		return p.ask(p.chat(key, "content-length", "5"))
	}},
	{"body shorter than its length", "RST_STREAM PROTOCOL_ERROR|400", func(p *peer, key string) string {
		return p.ask(p.chat(key, "content-length", "500"))
	}},
	{"two lengths", "RST_STREAM PROTOCOL_ERROR|400", func(p *peer, key string) string {
		return p.ask(p.chat(key, "content-length", strconv.Itoa(len(ask)+2), "content-length", "5"))
	}},
	{"head of 40 KB", "431", func(p *peer, key string) string {
		return p.ask(p.chat(key, "x-a", strings.Repeat("a", 7000), "x-b", strings.Repeat("b", 7000), "x-c", strings.Repeat("c", 7000),
			"x-d", strings.Repeat("d", 7000), "x-e", strings.Repeat("e", 7000)))
	}},
	{"head of 400 KB", "431|GOAWAY PROTOCOL_ERROR|closed", func(p *peer, key string) string {
		var padding []string
		for i := range 50 {
			padding = append(padding, "x-"+strconv.Itoa(i), strings.Repeat("~", 8000))
		}
		return p.ask(p.chat(key, padding...))
	}},
	{"101 fields", "431", func(p *peer, key string) string {
		var fields []string
		for i := range 101 {
			fields = append(fields, "x-"+strconv.Itoa(i), "a")
		}
		return p.ask(p.chat(key, fields...))
	}},
	{"path of 9 KB", "414", func(p *peer, key string) string {
		return p.ask([]string{":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", "/api/chat?" + strings.Repeat("a", 9000), "authorization", "Bearer " + key})
	}},
}

// ask sends a head, in as many frames as it needs, and the body of a good chat; and says how it was refused.
func (p *peer) ask(fields []string) string {
	p.t.Helper()
	const most = 16 << 10
	block := p.block(fields...)
	p.send(func() error {
		first := block[:min(len(block), most)]
		err := p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(first) == len(block)})
		for rest := block[len(first):]; len(rest) > 0 && err == nil; {
			n := min(len(rest), most)
			err = p.framer.WriteContinuation(1, n == len(rest), rest[:n])
			rest = rest[n:]
		}
		return errors.Join(err, p.framer.WriteData(1, true, []byte(`{`+ask+`}`)))
	})
	return p.refused(1)
}

// makeKeyWith makes a key for more requests than the test makes.
func makeKeyWith(t *testing.T, c *http.Client, s *service) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/keys", strings.NewReader(`{"name":"test","role":"user","rate_limit":1000000}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Admin)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var made madeKey
	if err := json.NewDecoder(res.Body).Decode(&made); err != nil || made.Secret == "" {
		t.Fatalf("no key: %s, %v", res.Status, err)
	}
	return made.Secret
}

// peakMemory is the most memory that the service ever had.
func peakMemory(t *testing.T, s *service) int64 { return memory(t, s, "VmHWM") }

// memory is a figure of the service's memory as the kernel names it, in bytes.
func memory(t *testing.T, s *service, name string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in\n%s", name, text)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
