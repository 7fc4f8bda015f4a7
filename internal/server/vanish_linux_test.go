package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/netbed"
	"ollama-api-service/internal/test/ollamatest"
)

const (
	prompt = `{"model":"tiny","stream":%v,"messages":[{"role":"user","content":"x"}]}`
	soon   = 25 * time.Second // the time of a probe that fails, and how long its result is used
)

// longTimes are the default timeouts. None of them may end a request in these tests.
func longTimes(o *server.Options) {
	o.FirstByte, o.Idle, o.MaxRequestTime = 15*time.Minute, 5*time.Minute, 30*time.Minute
}

// far is an Ollama on another machine.
func far(t *testing.T) (*netbed.Machine, *ollamatest.Server) {
	m := netbed.New(t)
	srv := ollamatest.StartOn(t, m.Listen(11434))
	return m, srv
}

// later sends a request from its own goroutine.
func (b *bed) later(req *http.Request) <-chan reply {
	answer := make(chan reply, 1)
	go func() {
		resp, err := b.client.Do(req)
		if err != nil {
			answer <- reply{err: err}
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		answer <- reply{resp.StatusCode, resp.Header, string(text), err}
	}()
	return answer
}

// await returns the answer, which must come within the given time.
func await(t *testing.T, what string, answer <-chan reply, within time.Duration) reply {
	t.Helper()
	select {
	case r := <-answer:
		return r
	case <-time.After(within):
		t.Fatalf("%s: no answer after %v", what, within)
		return reply{}
	}
}

// One of two servers vanishes. The other server answers the requests whose answers had not begun. Answers that had begun end with an error.
// A pull on all servers ends for this server. None of its slots stays taken.
func TestAServerThatVanishes(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	machine, one := far(t)
	_, two := far(t)
	b := start(t, setup{at: []string{one.URL, two.URL}, watched: true, change: longTimes, slots: 8})
	b.client.Timeout = 2 * time.Minute
	hang := ollamatest.Answer{Fault: ollamatest.Hang}
	one.Script("POST", "/api/embed", hang)
	one.Script("POST", "/v1/chat/completions", ollamatest.Answer{Tokens: 3, Fault: ollamatest.Hang, FaultAt: 700})
	one.Script("POST", "/api/pull", hang)
	one.Script("POST", "/api/chat", hang)
	b.fleet.Drain(b.fleet.Named("gpu2"), true)
	var waiting []<-chan reply
	for range 4 {
		waiting = append(waiting, b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, false))))
	}
	stream := b.later(b.request("POST", "/v1/chat/completions", adminSecret, fmt.Sprintf(prompt, true)))
	all := b.request("POST", "/api/pull", adminSecret, `{"model":"tiny"}`)
	all.Header.Set("X-Backend", "*")
	pull := b.later(all)
	for i := range 4 {
		one.WaitRequestTo(i+1, "POST", "/api/chat")
	}
	one.WaitRequestTo(1, "POST", "/api/pull")
	one.WaitRequestTo(1, "POST", "/v1/chat/completions")
	b.fleet.Drain(b.fleet.Named("gpu2"), false)
	machine.Vanish()
	for i, answer := range waiting {
		r := await(t, fmt.Sprint("request ", i), answer, soon)
		if r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
			t.Errorf("request %d: %d of %q: %s, want 200, %q", i, r.status, r.header.Get("X-Backend"), r.body, "gpu2")
		}
	}
	if r := await(t, "the stream", stream, soon); !strings.Contains(r.body, brokeOff) || strings.Contains(r.body, "[DONE]") {
		t.Errorf("the stream ended with %q, want %v in it, no %q", r.body, brokeOff, "[DONE]")
	}
	if r := await(t, "the pull", pull, 2*soon); !strings.Contains(r.body, "gpu1") || !strings.Contains(r.body, `"error"`) {
		t.Errorf("the pull: %d %s, want %q in it, %s in it", r.status, r.body, "gpu1", `"error"`)
	}
	if n := b.sched.Snapshot().InFlight; n != 0 {
		t.Errorf("got %d slots still taken, want 0", n)
	}
}

// A server works, but its probes take too long. None of its requests is moved or ended.
func TestAServerThatIsOnlySlow(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	_, one := far(t)
	_, two := far(t)
	b := start(t, setup{at: []string{one.URL, two.URL}, watched: true, change: longTimes})
	b.client.Timeout = 2 * time.Minute
	b.fleet.Drain(b.fleet.Named("gpu2"), true)
	token, first := make(chan struct{}), make(chan struct{})
	lines := ollamatest.ChatLines("tiny", 17, 60)
	one.Script("POST", "/api/chat", ollamatest.Answer{Chunks: lines, Gate: token, Header: http.Header{"Content-Type": {"application/x-ndjson"}}})
	one.Script("POST", "/api/generate", ollamatest.Answer{Tokens: 3, HeaderGate: first})
	stream := b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, true)))
	silent := b.later(b.request("POST", "/api/generate", adminSecret, `{"model":"tiny","prompt":"x","stream":false}`))
	one.WaitRequestTo(1, "POST", "/api/chat")
	one.WaitRequestTo(1, "POST", "/api/generate")
	one.Script("GET", "/api/version", ollamatest.Answer{Fault: ollamatest.Hang})
	b.fleet.Drain(b.fleet.Named("gpu2"), false)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		tick := time.NewTicker(700 * time.Millisecond) // 42 s in all, longer than the gateway waits for a hung server
		defer tick.Stop()
		for range lines {
			select {
			case <-tick.C:
			case <-ended:
				return
			}
			select {
			case token <- struct{}{}:
			case <-ended:
				return
			}
		}
		close(first)
	}()
	until(t, "the slow server is down", 20*time.Second, func() bool { return !b.backend.State().Healthy })
	if r := await(t, "the stream", stream, time.Minute); r.err != nil || !strings.Contains(r.body, `"done":true`) {
		t.Errorf("the stream of a slow server: %v, %q, want nil, %s in it", r.err, r.body, `"done":true`)
	}
	if r := await(t, "the request", silent, 10*time.Second); r.status != 200 || r.header.Get("X-Backend") != "gpu1" {
		t.Errorf("the request to a slow server: %d of %q, want 200, %q", r.status, r.header.Get("X-Backend"), "gpu1")
	}
}

// The system of a server acknowledges bytes, but its program does not answer. After half a minute, its requests move and its streams end.
func TestAServerThatHangs(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	_, one := far(t)
	_, two := far(t)
	b := start(t, setup{at: []string{one.URL, two.URL}, watched: true, change: longTimes})
	b.client.Timeout = 2 * time.Minute
	b.fleet.Drain(b.fleet.Named("gpu2"), true)
	one.Script("POST", "/api/generate", ollamatest.Answer{Fault: ollamatest.Hang})
	one.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 9, Fault: ollamatest.Hang, FaultAt: 500})
	stream := b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, true)))
	silent := b.later(b.request("POST", "/api/generate", adminSecret, `{"model":"tiny","prompt":"x","stream":false}`))
	one.WaitRequestTo(1, "POST", "/api/chat")
	one.WaitRequestTo(1, "POST", "/api/generate")
	one.Script("GET", "/api/version", ollamatest.Answer{Fault: ollamatest.Hang})
	b.fleet.Drain(b.fleet.Named("gpu2"), false)
	if r := await(t, "the request", silent, time.Minute); r.status != 200 || r.header.Get("X-Backend") != "gpu2" {
		t.Errorf("the request to a server that hangs: %d of %q, want 200, %q", r.status, r.header.Get("X-Backend"), "gpu2")
	}
	if r := await(t, "the stream", stream, 10*time.Second); !strings.Contains(r.body, brokeOff) {
		t.Errorf("the stream of a server that hangs ended with %q, want %v in it", r.body, brokeOff)
	}
}

// The server's name moves to another machine, and the old one is silent. Requests on connections to the old one are sent again to the new
// one.
func TestAServerThatMoves(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	names := netbed.Hosts(t)
	old, one := far(t)
	fresh, two := far(t)
	names.Point("gpu.test", old.Addr)
	b := start(t, setup{at: []string{"http://gpu.test:11434"}, watched: true, change: longTimes, slots: 8})
	b.client.Timeout = 2 * time.Minute
	gate := make(chan struct{})
	one.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, HeaderGate: gate})
	var warm []<-chan reply
	for range 8 {
		warm = append(warm, b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, false))))
	}
	one.WaitRequestTo(8, "POST", "/api/chat")
	close(gate)
	for i, answer := range warm {
		await(t, fmt.Sprint("warming up ", i), answer, soon)
	}
	one.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Hang})
	silent := b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, false)))
	one.WaitRequestTo(9, "POST", "/api/chat")
	names.Point("gpu.test", fresh.Addr)
	old.Vanish()
	for i := range 8 {
		answer := b.later(b.request("POST", "/api/chat", adminSecret, fmt.Sprintf(prompt, false)))
		if r := await(t, fmt.Sprint("request ", i), answer, soon); r.status != 200 {
			t.Errorf("request %d: %d %s, want 200", i, r.status, r.body)
		}
	}
	if r := await(t, "the request that waited", silent, soon); r.status != 200 {
		t.Errorf("the request that waited on the old machine: %d %s, want 200", r.status, r.body)
	}
	if n := len(two.RequestsTo("POST", "/api/chat")); n != 9 {
		t.Errorf("the new machine answered %d requests, want 9", n)
	}
	if !b.backend.State().Healthy {
		t.Errorf("the server is %+v", b.backend.State())
	}
}

// An upload may pause for as long as the server takes to write. It ends when the server has vanished.
func TestAnUploadToASlowDisk(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	machine := netbed.New(t)
	l := machine.Listen(11434)
	arrived, read := make(chan net.Conn), make(chan struct{})
	handler := http.NewServeMux()
	handler.HandleFunc("GET /api/version", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{"version": "0.24.0"})
	})
	handler.HandleFunc("POST /api/blobs/", func(w http.ResponseWriter, r *http.Request) {
		arrived <- nil
		<-read
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil && n != size {
			err = errors.New("not all of it")
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusCreated)
	})
	srv := &http.Server{Handler: handler}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	b := start(t, setup{at: []string{"http://" + l.Addr().String()}, watched: true, change: longTimes})
	b.client.Timeout = 3 * time.Minute
	upload := func() <-chan reply {
		req := b.request("POST", "/api/blobs/sha256:"+strings.Repeat("a", 64), adminSecret, "")
		req.Body, req.ContentLength = io.NopCloser(io.LimitReader(zeros{}, size)), size
		return b.later(req)
	}
	slow := upload()
	<-arrived
	select {
	case r := <-slow:
		t.Fatalf("the upload ended while it was paused: %d %s", r.status, r.body)
	case <-time.After(35 * time.Second): // longer than sent bytes may stay unacknowledged
	}
	close(read)
	if r := await(t, "the slow upload", slow, soon); r.status != 201 {
		t.Errorf("the slow upload: %d %s, want 201", r.status, r.body)
	}
	read = make(chan struct{})
	defer close(read)
	lost := upload()
	<-arrived
	machine.Vanish()
	if r := await(t, "the upload to a machine that has vanished", lost, soon); r.status != 502 {
		t.Errorf("the upload to a machine that has vanished: %d %s, want 502", r.status, r.body)
	}
}

const size = 64 << 20

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
