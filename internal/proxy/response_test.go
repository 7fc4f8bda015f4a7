package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/test/ollamatest"
)

func TestStreamsByContentType(t *testing.T) {
	for kind, want := range map[string][2]bool{
		"application/x-ndjson":                {true, false},
		"application/x-ndjson; charset=utf-8": {true, false},
		"text/event-stream":                   {true, true},
		"text/event-stream ;charset=utf-8":    {true, true},
		"application/json; charset=utf-8":     {},
		"text/plain":                          {},
		"":                                    {},
	} {
		r := Response{Header: http.Header{}}
		if kind != "" {
			r.Header.Set("Content-Type", kind)
		}
		if stream, sse := r.Streams(); stream != want[0] || sse != want[1] {
			t.Errorf("%q: got stream %v, sse %v; want %v", kind, stream, sse, want)
		}
	}
}

// answered sends a request to a fake that gives the answer a.
func answered(t *testing.T, a ollamatest.Answer) (*ollamatest.Request, *Response) {
	t.Helper()
	srv, u := fake(t)
	srv.Script("POST", "/api/chat", a)
	resp, err := u.Do(t.Context(), chatRequest())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(resp.Close)
	return srv.WaitRequest(1), resp
}

func TestHeadAndPass(t *testing.T) {
	const limit, keep = 2000, 100
	for _, size := range []int{0, 1, keep, limit - 1, limit, limit + 1, limit + keep, 600, 50_000} {
		body := string(bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size])
		for name, a := range map[string]ollamatest.Answer{
			"length":  {Body: body, Status: 200, Split: 777},
			"chunked": {Chunks: []string{body}, Split: 777},
			"close":   {Chunks: []string{body}, UntilClose: true},
		} {
			if name == "chunked" && size == 0 {
				a.Chunks = []string{}
			}
			t.Run(fmt.Sprint(name, size), func(t *testing.T) {
				_, r := answered(t, a)
				head, whole, err := r.Head(limit)
				if err != nil || whole != (size <= limit) || !strings.HasPrefix(body, string(head)) {
					t.Fatalf("got %d bytes, whole %v, %v; want whole %v", len(head), whole, err, size <= limit)
				}
				if whole {
					if len(head) != size {
						t.Errorf("got %d bytes, want %d", len(head), size)
					}
				} else {
					if len(head) != limit+1 {
						t.Errorf("got %d bytes, want one more than the limit of %d", len(head), limit)
					}
					w := httptest.NewRecorder()
					sent, tail, err := r.Pass(w, head, keep)
					if err != nil || len(tail) != keep || int(sent) != size-keep || w.Body.String()+string(tail) != body {
						t.Errorf("got %d sent, %d in the tail, %v; want %d, %d", sent, len(tail), err, size-keep, keep)
					}
				}
				r.Close()
				if n, want := pooled(r.up), 1; name != "close" && n != want {
					t.Errorf("got %d connections in the pool, want %d", n, want)
				}
			})
		}
	}
}

func TestHeadAndPassOfABrokenBody(t *testing.T) {
	_, r := answered(t, ollamatest.Answer{Body: strings.Repeat("x", 500), Fault: ollamatest.Close, FaultAt: 400})
	head, whole, err := r.Head(1000)
	wantCode(t, err, api.CodeUpstreamError)
	if whole || len(head) == 0 || len(head) >= 500 {
		t.Errorf("got %d bytes, whole %v; want 1 to 499, false", len(head), whole)
	}
	_, r = answered(t, ollamatest.Answer{Body: strings.Repeat("x", 5000), Fault: ollamatest.Close, FaultAt: 4000})
	head, whole, err = r.Head(1000)
	if whole || err != nil {
		t.Fatalf("got whole %v, %v; want false", whole, err)
	}
	_, _, err = r.Pass(httptest.NewRecorder(), head, 100)
	wantCode(t, err, api.CodeUpstreamError)
}

// sender writes and flushes each piece of a stream to w.
func sender(w http.ResponseWriter) func([]byte) (int, error) {
	return func(p []byte) (int, error) {
		n, err := w.Write(p)
		if err != nil {
			return n, err
		}
		return n, http.NewResponseController(w).Flush()
	}
}

// gone is a client that accepts some writes and then disconnects.
type gone struct {
	http.ResponseWriter
	takes int
}

func (g *gone) Write(p []byte) (int, error) {
	if g.takes--; g.takes < 0 {
		return 0, errors.New("broken pipe")
	}
	return g.ResponseWriter.Write(p)
}

func (g *gone) Unwrap() http.ResponseWriter { return g.ResponseWriter }

func TestClientGone(t *testing.T) {
	t.Run("stream", func(t *testing.T) {
		gate := make(chan struct{})
		req, r := answered(t, ollamatest.Answer{Tokens: 500, Gate: gate})
		w := &gone{httptest.NewRecorder(), 1}
		failed := make(chan error, 1)
		var sent int64
		go func() {
			var err error
			sent, err = r.Stream(sender(w), dialect.NewMeter(dialect.Chat, false, false, ""))
			r.Close()
			failed <- err
		}()
		gate <- struct{}{}
		var err error
		for open := true; open; {
			select {
			case gate <- struct{}{}:
			case err = <-failed:
				open = false
			}
		}
		wantCode(t, err, api.CodeClientGone)
		if line := ollamatest.ChatLines("tiny", 17, 1)[0]; sent < int64(len(line)) {
			t.Errorf("sent %d bytes, want at least the %d of the first line", sent, len(line))
		}
		req.WaitClosed() // the closed connection tells Ollama to stop
	})
	t.Run("pass", func(t *testing.T) {
		_, r := answered(t, ollamatest.Answer{Body: strings.Repeat("x", 100_000) + "its usage."})
		_, tail, err := r.Pass(&gone{httptest.NewRecorder(), 1}, nil, 10)
		wantCode(t, err, api.CodeClientGone)
		if string(tail) != "its usage." {
			t.Errorf("got the tail %q, want the end of the body", tail)
		}
		r.Close()
		if n := pooled(r.up); n != 1 {
			t.Errorf("got %d connections in the pool, want 1, because the body was read to its end", n)
		}
	})
	t.Run("outlived", func(t *testing.T) {
		req, r := answered(t, ollamatest.Answer{Body: strings.Repeat("x", 100_000), Fault: ollamatest.Hang, FaultAt: 50_000})
		ctx, leave := context.WithCancel(t.Context())
		r.Outlive(ctx)
		leave()
		_, _, err := r.Pass(httptest.NewRecorder(), nil, 10)
		wantCode(t, err, api.CodeClientGone)
		r.Close()
		req.WaitClosed()
	})
}

// watcher is a client that reports each flush.
type watcher struct {
	http.ResponseWriter
	flushed chan string
	since   strings.Builder
}

func (w *watcher) Write(p []byte) (int, error) { return w.since.Write(p) }

func (w *watcher) Flush() {
	w.flushed <- w.since.String()
	w.since.Reset()
}

// The client has each record before upstream sends the next. The last record is held back.
func TestStreamFlushesEachRecord(t *testing.T) {
	gate := make(chan struct{})
	_, r := answered(t, ollamatest.Answer{Tokens: 3, Gate: gate})
	m := dialect.NewMeter(dialect.Chat, false, false, "")
	w := &watcher{httptest.NewRecorder(), make(chan string), strings.Builder{}}
	failed := make(chan error, 1)
	go func() { _, err := r.Stream(sender(w), m); failed <- err }()
	lines := ollamatest.ChatLines("tiny", 17, 3)
	for _, line := range lines[:3] {
		gate <- struct{}{}
		if got := <-w.flushed; got != line {
			t.Fatalf("got %q, want %q", got, line)
		}
	}
	gate <- struct{}{}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if rest := m.Finish(); string(rest) != lines[3] || !m.Complete {
		t.Errorf("held back %q, complete %v; want %q, true", rest, m.Complete, lines[3])
	}
	r.Close()
	if n := pooled(r.up); n != 1 {
		t.Error("the connection was not kept")
	}
}

func TestStreamThatEndsTooEarly(t *testing.T) {
	_, r := answered(t, ollamatest.Answer{Tokens: 3, NoTerminal: true})
	m := dialect.NewMeter(dialect.Chat, false, false, "")
	if _, err := r.Stream(sender(httptest.NewRecorder()), m); err != nil || m.Complete {
		t.Errorf("a clean end without the last record: got %v, complete %v; want no error, false", err, m.Complete)
	}
	_, r = answered(t, ollamatest.Answer{Tokens: 30, Fault: ollamatest.Reset, FaultAt: 1000})
	_, err := r.Stream(sender(httptest.NewRecorder()), m)
	wantCode(t, err, api.CodeUpstreamError)
}

// Bytes after the last record are read, so that the connection can be used again. They belong to the client.
func TestStreamReadsItsEnd(t *testing.T) {
	chat := ollamatest.ChatLines("tiny", 17, 2)
	event := `data: {"choices":[{"index":0,"delta":{"content":" they"},"finish_reason":null}]}` + "\n\n"
	finish := `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	for _, c := range []struct {
		name   string
		kind   dialect.Kind
		chunks []string
		end    string // framing that comes in a piece of its own
		pooled int
	}{
		{"end of the framing with the last record", dialect.Chat, append(chat, ""), "", 1},
		{"end of the framing in a piece of its own", dialect.Chat, chat, "0\r\n\r\n", 1},
		{"blank line of [DONE] in a piece of its own", dialect.OpenAIChat, []string{event, finish, "data: [DONE]", "\n\n"}, "0\r\n\r\n", 1},
		{"line end of [DONE] in pieces", dialect.OpenAIChat, []string{event, finish, "data: [DONE]", "\n", "\n"}, "0\r\n\r\n", 1},
		{"no end of the framing", dialect.Chat, chat, "", 0},
		{"more and more", dialect.Chat, append(chat, "\n", "\n", "\n", "\n", "\n", "\n"), "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, far := piped(t)
			kind := "application/x-ndjson"
			if c.kind == dialect.OpenAIChat {
				kind = "text/event-stream"
			}
			go func() {
				far.Read(make([]byte, 4<<10))
				io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Type: "+kind+"\r\nTransfer-Encoding: chunked\r\n\r\n")
				for _, s := range c.chunks {
					piece := fmt.Sprintf("%x\r\n%s\r\n", len(s), s)
					if _, err := io.WriteString(far, piece); err != nil {
						return
					}
				}
				if c.end != "" {
					io.WriteString(far, c.end)
				}
			}()
			resp, err := u.Do(t.Context(), chatRequest())
			if err != nil {
				t.Fatal(err)
			}
			_, sse := resp.Streams()
			m := dialect.NewMeter(c.kind, sse, false, "")
			w := httptest.NewRecorder()
			if _, err := resp.Stream(sender(w), m); err != nil {
				t.Fatal(err)
			}
			got := w.Body.String() + string(m.Finish())
			resp.Close()
			want := strings.Join(c.chunks, "")
			if c.name == "more and more" {
				got, want = strings.TrimRight(got, "\n"), strings.TrimRight(want, "\n")
			}
			if got != want || !m.Complete {
				t.Errorf("complete %v, want true; got\n%q\nwant\n%q", m.Complete, got, want)
			}
			if n := pooled(u); n != c.pooled {
				t.Errorf("got %d connections in the pool, want %d", n, c.pooled)
			}
		})
	}
}

// Ollama can lose a slot if its connection closes while it writes. So what it has written is read, and then the connection is closed in a
// silence.
func TestLeaveReadsWhatHasCome(t *testing.T) {
	lines := ollamatest.ChatLines("tiny", 17, 20)
	const sent = 8
	raw := "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + strings.Join(lines, "")
	at := strings.Index(raw, "\r\n\r\n") + 4 + len(strings.Join(lines[:sent], ""))
	req, r := answered(t, ollamatest.Answer{Raw: raw, Fault: ollamatest.Hang, FaultAt: at})
	m := dialect.NewMeter(dialect.Chat, false, false, "")
	r.Leave(m, time.Minute)
	if m.Tokens != sent {
		t.Errorf("got %d pieces read, want the %d that were sent", m.Tokens, sent)
	}
	req.WaitClosed()
}
