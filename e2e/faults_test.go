package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ollama-api-service/internal/test/ollamatest"
)

// streamsOf are requests for a stream in each dialect, with the form of the error record when the service stops.
var streamsOf = []struct{ path, body, failure string }{
	{"/api/chat", `{` + ask + `}`, `{"error":"` + stopping + `","detail":"` + stopping + `"}`},
	{"/v1/chat/completions", `{` + ask + `,"stream":true}`, `data: {"error":{"message":"` + stopping + `"`},
	{"/v1/completions", `{"model":"tiny","prompt":"x","stream":true}`, `data: {"error":{"message":"` + stopping + `"`},
	{"/v1/responses", `{"model":"tiny","input":"x","stream":true}`, `data: {"type":"error","sequence_number":`},
	{"/v1/messages", `{` + ask + `,"max_tokens":9,"stream":true}`, `data: {"type":"error","error":{"type":"overloaded_error","message":"` + stopping + `"}`},
}

const stopping = "the gateway is stopping: try again in a moment"

// address returns the address of the service itself, not that of the tap.
func (s *service) address(t *testing.T) string {
	t.Helper()
	a, err := s.stdout.find(addressLine, s.ended)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// halfway starts streams in all dialects that stop in the middle of their answers.
func halfway(t *testing.T, fake *ollamatest.Server, s *service, key string) <-chan []answer {
	t.Helper()
	var all sync.WaitGroup
	answers := make([]answer, len(streamsOf))
	for i, c := range streamsOf {
		gate := make(chan struct{}, 8)
		for range cap(gate) {
			gate <- struct{}{}
		}
		fake.Script("POST", c.path, ollamatest.Answer{Tokens: 20, Gate: gate})
		all.Go(func() {
			a, err := tryCall(t.Context(), "POST", s.URL+c.path, key, c.body)
			if err != nil {
				a.Err = err
			}
			answers[i] = a
		})
		poll(t, "half of an answer", func() bool { return len(gate) == 0 })
	}
	done := make(chan []answer, 1)
	go func() {
		all.Wait()
		done <- answers
	}()
	return done
}

// After SIGTERM, the service accepts no more connections, as a readiness probe sees. A request that still runs when the grace period ends
// gets an error in its dialect and is cut. Every request has a row.
func TestAStopTellsEveryStream(t *testing.T) {
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL+"?slots=9", nil, "SHUTDOWN_GRACE=2s")
	key := s.makeKey(t, "").Secret
	running := halfway(t, fake, s, key)
	from := time.Now()
	s.cmd.Process.Signal(syscall.SIGTERM)
	poll(t, "refused connection", func() bool {
		c, err := net.Dial("tcp", s.address(t))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	t.Logf("the listener was closed after %v", time.Since(from).Round(time.Millisecond))
	for i, a := range <-running {
		lines := strings.Split(strings.TrimSpace(a.Body), "\n")
		ordered := streamsOf[i].path == "/v1/responses" || streamsOf[i].path == "/v1/messages"
		if streamsOf[i].path == "/v1/responses" { // its error is the event before the last
			lines = lines[:max(1, len(lines)-3)]
		}
		if a.Status != http.StatusOK || (a.Err == nil) != ordered || !strings.HasPrefix(last(lines), streamsOf[i].failure) || !strings.Contains(last(lines), stopping) || !strings.Contains(a.Body, ollamatest.Word(0)) {
			t.Errorf("%s: %d, %v, %s", streamsOf[i].path, a.Status, a.Err, a.Body)
		}
	}
	<-s.ended
	if took := time.Since(from); s.result != nil || took < 2*time.Second || took > 20*time.Second {
		t.Errorf("the service ended after %v with %v", took, s.result)
	}
	s = s.again(t, fake.URL)
	if st := s.stats(t, key, 5); st.Total != 5 || st.ByOutcome["interrupted"] != 5 || st.Estimated != 5 || st.Completion < 20 {
		t.Errorf("books: %+v", st)
	}
}

// At a second signal, the service ends at once. The requests that ran still have rows.
func TestTheSecondSignalEndsAtOnce(t *testing.T) {
	fake := ollamatest.Start(t)
	s := start(t, t.TempDir(), fake.URL+"?slots=9", nil, "SHUTDOWN_GRACE=10m")
	key := s.makeKey(t, "").Secret
	running := halfway(t, fake, s, key)
	s.cmd.Process.Signal(syscall.SIGTERM)
	if _, err := s.stdout.find(regexp.MustCompile(`"msg":"(stopping)"`), s.ended); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
		t.Logf("the service ended after %v", time.Since(from).Round(time.Millisecond))
	case <-time.After(5 * time.Second):
		t.Fatal("the service did not end")
	}
	for _, a := range <-running {
		if a.Err == nil && !strings.Contains(a.Body, stopping) {
			t.Errorf("the answer ended as if it were complete: %s", a.Body)
		}
	}
	s = s.again(t, fake.URL)
	if st := s.stats(t, key, 5); st.Total != 5 || st.ByOutcome["interrupted"] != 5 {
		t.Errorf("books: %+v", st)
	}
}

// When a service is stopped under load, the books have exactly the requests whose answers clients have read to the end.
func TestNoRowIsLostInAStop(t *testing.T) {
	fake := ollamatest.Start(t)
	fake.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer { return ollamatest.Answer{Tokens: 3, PromptTokens: 5} })
	s := start(t, t.TempDir(), fake.URL+"?slots=8", nil)
	key := s.makeKey(t, `,"rate_limit":1000000`).Secret
	var clients sync.WaitGroup
	var mu sync.Mutex
	whole := 0
	enough := make(chan struct{})
	for range 30 {
		clients.Go(func() {
			for {
				a, err := tryCall(t.Context(), "POST", s.URL+"/api/chat", key, `{`+ask+`}`)
				if err != nil {
					return // the service does not listen any more
				}
				if a.Status != http.StatusOK || a.Err != nil || !strings.Contains(a.Body, `"done":true`) {
					t.Errorf("an answer was cut: %d, %v, %s", a.Status, a.Err, a.Body)
				}
				mu.Lock()
				if whole++; whole == 500 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	s.stop(t)
	clients.Wait()
	s = s.again(t, fake.URL)
	st := s.stats(t, key, int64(whole))
	if st.Total != int64(whole) || st.ByOutcome["ok"] != st.Total || st.Completion != 3*st.Total || st.Prompt != 5*st.Total {
		t.Errorf("clients have read %d answers to the end, the books have %+v", whole, st)
	}
	t.Logf("%d answers read and recorded", whole)
}

const stuck = 200

// A client that reads nothing holds only little memory of the service until it is disconnected.
func TestStuckClientsHoldLittle(t *testing.T) {
	fake := ollamatest.Start(t)
	piece := strings.Join(ollamatest.ChatLines("tiny", 17, 30)[:30], "")
	chunks := make([]string, 4000)
	for i := range chunks {
		chunks[i] = piece
	}
	fake.Handle("POST", "/api/chat", func(*ollamatest.Request) ollamatest.Answer {
		return ollamatest.Answer{Chunks: chunks, Header: http.Header{"Content-Type": {"application/x-ndjson"}}}
	})
	t.Run("HTTP 1.1", func(t *testing.T) {
		s := start(t, t.TempDir(), fake.URL+"?slots=1000", nil)
		key := s.makeKey(t, `,"rate_limit":100000`).Secret
		s.measure(t, fake, func() {
			c, err := net.Dial("tcp", s.address(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			fmt.Fprintf(c, "POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n{%s}", key, len(ask)+2, ask)
		})
	})
	t.Run("HTTP 2", func(t *testing.T) {
		a, files := newAuthority(t), newPair(t)
		files.renew(t, a)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(a.pem)
		s := start(t, t.TempDir(), fake.URL+"?slots=1000", nil, "TLS_CERT="+files.cert, "TLS_KEY="+files.key)
		key := makeKeyWith(t, a.client(t), s)
		s.measure(t, fake, func() {
			p := newPeer(t, s, roots) // which never opens a window
			if err := p.send(func() error {
				if err := p.open(1, false, p.chat(key)); err != nil {
					return err
				}
				return p.framer.WriteData(1, true, []byte(`{`+ask+`}`))
			}); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// measure opens stuck clients, waits until no more bytes come from upstream, and measures the memory of each client.
func (s *service) measure(t *testing.T, fake *ollamatest.Server, open func()) {
	t.Helper()
	seen := len(fake.RequestsTo("POST", "/api/chat"))
	open()
	fake.WaitRequestTo(seen+1, "POST", "/api/chat")
	before := peakMemory(t, s)
	for range stuck {
		open()
	}
	fake.WaitRequestTo(seen+1+stuck, "POST", "/api/chat")
	<-time.After(5 * time.Second) // by now upstream's bytes have filled all buffers, and the peak has passed
	each := (peakMemory(t, s) - before) / stuck
	t.Logf("each of %d stuck clients holds %d KiB", stuck, each>>10)
	if each > 256<<10 {
		t.Errorf("each of %d stuck clients holds %d KiB, want at most 256", stuck, each>>10)
	}
}

// An endless line is an error as soon as it is too long for any client, and never takes more memory than that.
func TestLinesWithoutEndAreBounded(t *testing.T) {
	fake := ollamatest.Start(t)
	piece := string(bytes.Repeat([]byte("x"), 1<<20))
	chunks := []string{ollamatest.ChatLines("tiny", 17, 1)[0], `{"x":"`}
	for range 100 {
		chunks = append(chunks, piece)
	}
	s := start(t, t.TempDir(), fake.URL, nil)
	s.wire.nonsense.Store(true)
	key := s.makeKey(t, "").Secret
	call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`).want(t, http.StatusOK)
	before := peakMemory(t, s)
	fake.Script("POST", "/api/chat", ollamatest.Answer{Chunks: chunks, Header: http.Header{"Content-Type": {"application/x-ndjson"}}})
	a := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`}`)
	if a.Err == nil || !strings.Contains(a.Body, "a record too long to pass on") || len(a.Body) > 1000 {
		t.Errorf("%d, %v, %d bytes", a.Status, a.Err, len(a.Body))
	}
	// One object of that size is forwarded, except for its end. It has 16 MiB, because the tests hold several copies of it.
	const object = 16
	fake.Script("POST", "/api/chat", ollamatest.Answer{Chunks: chunks[1 : 2+object], Header: http.Header{"Content-Type": {"application/json"}}})
	if a := call(t, "POST", s.URL+"/api/chat", key, `{`+ask+`,"stream":false}`); a.Err != nil || len(a.Body) != object<<20+len(chunks[1]) {
		t.Errorf("%d, %v, %d bytes", a.Status, a.Err, len(a.Body))
	}
	after := peakMemory(t, s)
	t.Logf("the most memory that was held grew by %d MiB", (after-before)>>20)
	if after-before > 64<<20 {
		t.Errorf("the most memory that was held grew by %d MiB", (after-before)>>20)
	}
}
