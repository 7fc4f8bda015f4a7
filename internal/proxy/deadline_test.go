package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"

// play acts as the upstream at the far end of a pipe: it reads the request, and writes each piece after its pause.
func play(t *testing.T, far net.Conn, pieces ...any) {
	pause := pauses(t)
	go func() {
		far.Read(make([]byte, 4<<10))
		for _, p := range pieces {
			switch p := p.(type) {
			case time.Duration:
				pause(p)
			case string:
				if _, err := io.WriteString(far, p); err != nil {
					return
				}
			}
		}
	}()
}

// pauses returns a sleep for goroutines that ends when the test ends.
func pauses(t *testing.T) func(time.Duration) {
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	return func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-over:
		}
	}
}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func TestDeadlines(t *testing.T) {
	const line = "{}\n"
	trickle := []any{time.Second, streamHead}
	for range 100 {
		trickle = append(trickle, 4*time.Minute, chunk(line))
	}
	trickle = append(trickle, "0\r\n\r\n")
	for _, c := range []struct {
		name                      string
		firstByte, idle, deadline time.Duration
		upstream                  []any
		code                      api.Code // "" means a whole answer
		atLeast, atMost           time.Duration
		readerSleeps              time.Duration // before each read of the body
		lines                     int
	}{
		{
			name: "no header", firstByte: 15 * time.Minute, idle: time.Minute, deadline: time.Hour,
			code: api.CodeUpstreamTimeout, atLeast: 15 * time.Minute, atMost: 15 * time.Minute,
		},
		{
			name: "no header until the deadline", firstByte: 15 * time.Minute, deadline: time.Minute,
			code: api.CodeUpstreamTimeout, atLeast: time.Minute, atMost: time.Minute,
		},
		{
			name: "half a header", firstByte: time.Minute, upstream: []any{30 * time.Second, "HTTP/1.1 200 OK\r\n"},
			code: api.CodeUpstreamTimeout, atLeast: time.Minute, atMost: time.Minute,
		},
		{
			name: "half a line of a header", firstByte: time.Minute, upstream: []any{30 * time.Second, "HTTP/1.1 200 OK\r\nContent-Le"},
			code: api.CodeUpstreamTimeout, atLeast: time.Minute, atMost: time.Minute,
		},
		{
			name: "silence in the body", firstByte: time.Minute, idle: 5 * time.Minute, deadline: time.Hour, upstream: []any{streamHead, chunk(line)},
			code: api.CodeUpstreamTimeout, atLeast: 5 * time.Minute, atMost: 5*time.Minute + 2*deadlineGrain, lines: 1,
		},
		{
			name: "silence in the body, short", firstByte: time.Minute, idle: time.Second, deadline: time.Hour,
			upstream: []any{streamHead, chunk(line), 900 * time.Millisecond, chunk(line), 950 * time.Millisecond, chunk(line)},
			code:     api.CodeUpstreamTimeout, atLeast: 2850 * time.Millisecond, atMost: 3300 * time.Millisecond, lines: 3,
		},
		{
			name: "silence just within the bound, after a piece that did not move the deadline", firstByte: time.Minute, idle: time.Second, deadline: time.Hour,
			upstream: []any{streamHead, chunk(line), 100 * time.Millisecond, chunk(line), 950 * time.Millisecond, chunk(line), "0\r\n\r\n"},
			atLeast:  1050 * time.Millisecond, atMost: 1050 * time.Millisecond, lines: 3,
		},
		{
			name: "header that comes later than the idle bound", firstByte: 15 * time.Minute, idle: 5 * time.Minute, deadline: time.Hour,
			upstream: []any{10 * time.Minute, streamHead, time.Minute, chunk(line), "0\r\n\r\n"}, atLeast: 11 * time.Minute, atMost: 11 * time.Minute, lines: 1,
		},
		{
			name: "a slow reader is not a silent upstream", firstByte: time.Minute, idle: 5 * time.Minute, deadline: time.Hour, readerSleeps: 10 * time.Minute,
			upstream: []any{streamHead, chunk(line), chunk(line), "0\r\n\r\n"}, atLeast: 10 * time.Minute, atMost: time.Hour, lines: 2,
		},
		{
			name: "short silences for hours", firstByte: time.Minute, idle: 5 * time.Minute, deadline: 10 * time.Hour, upstream: trickle,
			atLeast: 400 * time.Minute, atMost: 401 * time.Minute, lines: 100,
		},
		{
			name: "short silences until the deadline", firstByte: time.Minute, idle: 5 * time.Minute, deadline: 30 * time.Minute, upstream: trickle,
			code: api.CodeUpstreamTimeout, atLeast: 30 * time.Minute, atMost: 30 * time.Minute, lines: 7,
		},
		{
			name: "only a deadline", deadline: 30 * time.Minute, upstream: trickle,
			code: api.CodeUpstreamTimeout, atLeast: 30 * time.Minute, atMost: 30 * time.Minute, lines: 7,
		},
		{name: "a bound on the first byte does not bound the body", firstByte: time.Minute, upstream: trickle, atLeast: 400 * time.Minute, atMost: 401 * time.Minute, lines: 100},
		{
			name: "a pull may be silent for any time", upstream: []any{24 * time.Hour, streamHead, 24 * time.Hour, chunk(line), "0\r\n\r\n"},
			atLeast: 48 * time.Hour, atMost: 48 * time.Hour, lines: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, far := piped(t)
				play(t, far, c.upstream...)
				start := time.Now()
				r := chatRequest()
				r.FirstByte, r.Idle = c.firstByte, c.idle
				if c.deadline > 0 {
					r.Deadline = start.Add(c.deadline)
				}
				resp, err := u.Do(t.Context(), r)
				var got strings.Builder
				if err == nil {
					defer resp.Close()
					buf := make([]byte, 100)
					for err == nil {
						time.Sleep(c.readerSleeps)
						var n int
						n, err = resp.Read(buf)
						got.Write(buf[:n])
					}
				}
				if took := time.Since(start); took < c.atLeast || took > c.atMost {
					t.Errorf("the request took %v, want %v to %v", took, c.atLeast, c.atMost)
				}
				if n := strings.Count(got.String(), line); n != c.lines {
					t.Errorf("got %d lines, want %d", n, c.lines)
				}
				if c.code != "" {
					wantCode(t, err, c.code)
				} else if !errors.Is(err, io.EOF) {
					t.Errorf("got error %v, want EOF", err)
				}
			})
		})
	}
}

// A stream has ended once its last record has come, even if upstream neither ends it nor sends more.
func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, far := piped(t)
		lines := ollamatest.ChatLines("tiny", 17, 2)
		play(t, far, streamHead, chunk(lines[0]), 10*time.Second, chunk(lines[1]), 10*time.Second, chunk(lines[2]),
			50*time.Millisecond, chunk("\n"), time.Hour, "0\r\n\r\n")
		r := chatRequest()
		r.FirstByte, r.Idle = time.Minute, 5*time.Minute
		start := time.Now()
		resp, err := u.Do(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		m := dialect.NewMeter(dialect.Chat, false, false, "")
		if _, err := resp.Stream(sender(httptest.NewRecorder()), m); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 20*time.Second+drainWait {
			t.Errorf("the stream took %v, want %v", took, 20*time.Second+drainWait)
		}
		if got := string(m.Finish()); got != lines[2]+"\n" || !m.Complete {
			t.Errorf("held back %q, complete %v; want %q, true", got, m.Complete, lines[2]+"\n")
		}
		resp.Close()
		if pooled(u) != 0 {
			t.Error("a connection with an unfinished answer was kept")
		}
	})
}

// FirstByte bounds the write of each piece of an upload, and the wait for the answer again.
func TestUploadDeadlines(t *testing.T) {
	for name, c := range map[string]struct {
		taken, answer time.Duration // pauses of upstream before each piece and before its answer
		code          api.Code
	}{
		"slow, but not stuck": {50 * time.Second, 50 * time.Second, ""},
		"stuck":               {70 * time.Second, 0, api.CodeUpstreamTimeout},
		"no answer":           {time.Second, 70 * time.Second, api.CodeUpstreamTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer far.Close()
				u := upstreamAt(t, "http://ollama.test")
				const size = 400 << 10
				pause := pauses(t)
				go func() {
					buf := make([]byte, 64<<10)
					for got := 0; got < size; {
						pause(c.taken)
						n, err := far.Read(buf)
						if err != nil {
							return
						}
						got += n
					}
					pause(c.answer)
					io.WriteString(far, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
				}()
				r := upload(endless{}, size)
				r.FirstByte = time.Minute
				conn := newConn(near, nil)
				resp, err := u.roundTrip(t.Context(), conn, r)
				if err != nil {
					conn.shut()
				} else {
					defer resp.Close()
				}
				switch {
				case c.code != "":
					wantCode(t, failure(t.Context(), err, noAnswer, time.Time{}), c.code)
				case err != nil || resp.Status != 201:
					t.Errorf("got %v, %v; want status 201", resp, err)
				}
			})
		})
	}
}

// The same on real sockets, where the runtime's poller implements the deadlines.
func TestTimeoutsOnSockets(t *testing.T) {
	srv, u := fake(t)
	srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Hang})
	r := chatRequest()
	r.FirstByte = 30 * time.Millisecond
	within(t, "the wait for a header", func() {
		_, err := u.Do(t.Context(), r)
		wantCode(t, err, api.CodeUpstreamTimeout)
	})
	srv.WaitRequest(1).WaitClosed()

	// A pooled connection that stays silent is not stale: the server may be working on the request.
	srv.Script("POST", "/api/chat")
	fetch(t, u, chatRequest())
	srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Hang})
	within(t, "the wait for a header on a pooled connection", func() {
		_, err := u.Do(t.Context(), r)
		wantCode(t, err, api.CodeUpstreamTimeout)
	})
	if r := srv.WaitRequest(3); r.Conn != 2 || len(srv.Requests()) != 3 {
		t.Errorf("got %d requests, the third over connection %d; want 3, over connection 2", len(srv.Requests()), r.Conn)
	}

	srv.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Fault: ollamatest.Hang, FaultAt: ollamatest.AfterHeader})
	r.FirstByte, r.Idle = time.Minute, 30*time.Millisecond
	within(t, "the wait for a body", func() {
		resp, err := u.Do(t.Context(), r)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Close()
		_, err = resp.Read(make([]byte, 1))
		wantCode(t, err, api.CodeUpstreamTimeout)
	})
	srv.WaitRequest(4).WaitClosed()

	// A write that blocks: an upload to a server that does not read.
	stuck := script(t, func(_ int, c *net.TCPConn) {
		<-t.Context().Done()
	})
	within(t, "the upload", func() {
		r := upload(endless{}, -1)
		r.FirstByte = 30 * time.Millisecond
		_, err := upstreamAt(t, stuck).Do(t.Context(), r)
		wantCode(t, err, api.CodeUpstreamTimeout)
	})
}
