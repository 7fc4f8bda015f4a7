package server_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

const (
	endedEarly = "the answer of the Ollama server ended too early: try again"
	noJSON     = "the Ollama server sent a record that is not JSON: try again"
	noAnswer   = "the Ollama server did not answer in time: it may be loading a model; try again"
	silence    = "the Ollama server stopped sending in the middle of its answer: try again"
	tooLong    = "the request took longer than MAX_REQUEST_TIME allows: ask for a shorter answer"
)

// chunked returns a streamed answer with these records, whose body ends properly.
func (f *flow) chunked(records ...string) ollamatest.Answer {
	if records == nil {
		records = []string{} // an answer without records
	}
	return ollamatest.Answer{Chunks: records, Header: http.Header{"Content-Type": {f.kind}}}
}

// record returns a record of the dialect with data.
func (f *flow) record(data string) string {
	if f.name == "native" {
		return data + "\n"
	}
	return "data: " + data + "\n\n"
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprint(z, s)
	z.Close()
	return b.String()
}

// badUpstream is one wrong way in which Ollama, or a proxy before it, may answer a stream, and what its client must then get.
type badUpstream struct {
	name    string
	answer  func(f *flow) ollamatest.Answer
	status  int // of a failure before the first record; 200 means a failure after the first three records, 0 no failure
	says    string
	outcome string
}

func (f *flow) raw(head, body string) ollamatest.Answer {
	raw := head + body
	return ollamatest.Answer{Raw: raw, Fault: ollamatest.Close, FaultAt: len(raw)}
}

func badUpstreams(elsewhere string) []badUpstream {
	three := func(f *flow, more ...string) ollamatest.Answer { return f.chunked(append(f.open[:3:3], more...)...) }
	whole := func(f *flow) []string { return append(f.open[:3:3], f.end...) }
	failing := func(status int, body string) func(f *flow) ollamatest.Answer {
		return func(*flow) ollamatest.Answer { return ollamatest.Answer{Status: status, Body: body} }
	}
	return []badUpstream{
		{"no terminal record", func(f *flow) ollamatest.Answer { return three(f) }, 200, endedEarly, "upstream_error"},
		{"no record at all", func(f *flow) ollamatest.Answer { return f.chunked() }, 502, endedEarly, "upstream_error"},
		{"an object that is not there", func(f *flow) ollamatest.Answer {
			return f.raw("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n", "")
		}, 502, endedEarly, "upstream_error"},
		{"a broken record", func(f *flow) ollamatest.Answer {
			return three(f, f.record(`{"model":"tiny","crea{"done":false}`), f.end[0])
		}, 200, noJSON, "upstream_error"},
		{"a broken record that ends like a good one", func(f *flow) ollamatest.Answer {
			return three(f, f.record(`{"model":"tiny","done":fal "choices":[{"finish_reason":null}]},"done":false}`), f.end[0])
		}, 200, noJSON, "upstream_error"},
		{"a broken record first", func(f *flow) ollamatest.Answer { return f.chunked(f.record(`<html>`), f.end[0]) }, 502, noJSON, "upstream_error"},
		{"a record that is no object", func(f *flow) ollamatest.Answer { return three(f, f.record(`"done"`), f.end[0]) }, 200, noJSON, "upstream_error"},
		{"a record without end", func(f *flow) ollamatest.Answer {
			return three(f, strings.TrimSpace(f.record(`{"x":"`+strings.Repeat("x", 9<<20))))
		}, 200, "the Ollama server sent a record too long to pass on", "upstream_error"},
		{"a header of 1 MiB", func(f *flow) ollamatest.Answer {
			a := three(f, f.end...)
			a.Header.Set("X-Long", strings.Repeat("x", 1<<20))
			return a
		}, 502, brokeOff, "upstream_error"},
		{"1xx without end", func(f *flow) ollamatest.Answer {
			a := three(f, f.end...)
			a.Informational = strings.Split(strings.TrimSpace(strings.Repeat("103 Early-Hints\n", 10_000)), "\n")
			return a
		}, 502, brokeOff, "upstream_error"},
		{"switching protocols", func(f *flow) ollamatest.Answer {
			return f.raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "")
		}, 502, brokeOff, "upstream_error"},
		{"no HTTP", func(f *flow) ollamatest.Answer { return f.raw("SSH-2.0-OpenSSH_9.2\r\n", "") }, 502, brokeOff, "upstream_error"},
		{"a redirect", func(*flow) ollamatest.Answer {
			return ollamatest.Answer{Status: 307, Header: http.Header{"Location": {elsewhere}}}
		}, 502, "the Ollama server redirects: OLLAMA_BASE_URL must name it directly", "upstream_error"},
		{"a stream in gzip", func(f *flow) ollamatest.Answer {
			a := f.chunked(zipped(strings.Join(whole(f), "")))
			a.Header.Set("Content-Encoding", "gzip")
			return a
		}, 502, "the Ollama server compressed its answer", "upstream_error"},
		{"an object in gzip", func(*flow) ollamatest.Answer {
			return ollamatest.Answer{Body: zipped(`{"done":true}`), Header: http.Header{"Content-Encoding": {"gzip"}, "Content-Type": {"application/json"}}}
		}, 502, "the Ollama server compressed its answer", "upstream_error"},
		{"a page of HTML", failing(200, "<html>Welcome to nginx!</html>"), 502, "the Ollama server answered 200 without JSON", "upstream_error"},
		{"a failure in HTML", failing(500, "<html>Internal Server Error</html>"), 502, "the Ollama server answered 500 without JSON", "upstream_error"},
		{"its own account", failing(401, `{"error":"unauthorized"}`), 502, "the Ollama server is not signed in where this model needs it", "upstream_error"},
		{"trailers", func(f *flow) ollamatest.Answer {
			wire := strings.TrimSuffix(f.wire(), "\r\n") + "X-Trailer: x\r\nSet-Cookie: t=1\r\n\r\n"
			return ollamatest.Answer{Raw: strings.Replace(wire, "Date:", "Trailer: X-Trailer\r\nDate:", 1)}
		}, 0, "", "ok"},
		{"headers that must not be forwarded", func(f *flow) ollamatest.Answer {
			a := three(f, f.end...)
			for _, name := range []string{"Set-Cookie", "Server", "Keep-Alive", "Proxy-Authenticate", "Upgrade", "Trailer", "X-Other", "X-Request-Id", "Access-Control-Allow-Origin"} {
				a.Header[name] = []string{"theirs"}
			}
			return a
		}, 0, "", "ok"},
		{"bytes that are no UTF-8", func(f *flow) ollamatest.Answer {
			return three(f, append([]string{strings.Replace(f.open[2], "seven", "se\xff\xc3en", 1)}, f.end...)...)
		}, 0, "", "ok"},
		{"one byte at a time", func(f *flow) ollamatest.Answer {
			a := three(f, f.end...)
			a.Split = 1
			return a
		}, 0, "", "ok"},
		{"until the connection closes", func(f *flow) ollamatest.Answer {
			a := three(f, f.end...)
			a.UntilClose = true
			return a
		}, 0, "", "ok"},
	}
}

// A fault of Ollama becomes a failure in the client's dialect, with an error status if nothing was sent yet. Of Ollama's header, only the
// type of the answer is forwarded.
func TestBadUpstreams(t *testing.T) {
	b := start(t, setup{})
	elsewhere := ollamatest.Start(t)
	list := flows()
	for _, bad := range badUpstreams(elsewhere.URL) {
		t.Run(bad.name, func(t *testing.T) {
			key, _ := b.key(`{"name":"one","role":"user"}`)
			for i := range list {
				f := &list[i]
				answer := bad.answer(f)
				b.ollama.Script("POST", f.path, answer)
				r := b.do("POST", f.path, key, fmt.Sprintf(f.request, "x"))
				complaint := ""
				switch bad.status {
				case 200:
					complaint = f.endsLoudly(r, strings.Join(f.open[:3], ""), "upstream_error", bad.says)
				case 0:
					want := strings.Join(answer.Chunks, "")
					if answer.Raw != "" {
						want = strings.Join(f.open, "") + strings.Join(f.end, "")
					}
					if r.status != 200 || r.err != nil || r.body != want {
						complaint = fmt.Sprintf("%d, %v\n%q\nwant\n%q", r.status, r.err, r.body, want)
					}
				default:
					complaint = f.refused(r, bad.status, bad.says)
				}
				if complaint != "" {
					t.Errorf("%s: %s, want none", f.name, complaint)
				}
				checkHeader(t, r)
			}
			if o := b.stats(key)["requests_by_outcome"].(map[string]any); o[bad.outcome] != float64(len(list)) {
				t.Errorf("booked: %v, want %v", o, float64(len(list)))
			}
		})
	}
	if elsewhere.Connections() != 0 {
		t.Error("a redirect was followed")
	}
}

// checkHeader reports fields that the gateway does not set.
func checkHeader(t *testing.T, r reply) {
	t.Helper()
	for name, values := range r.header {
		switch name {
		case "Content-Type", "Content-Length", "Date", "X-Request-Id", "Request-Id", "X-Accel-Buffering", "X-Policy", "X-Backend", "X-Queue-Wait-Ms", "X-Should-Retry", "Connection",
			"Cache-Control", "X-Content-Type-Options":
		default:
			if !strings.HasPrefix(name, "X-Ratelimit-") && !strings.HasPrefix(name, "Anthropic-Ratelimit-Requests-") {
				t.Errorf("the answer carries %s: %v", name, values)
			}
		}
		if len(values) != 1 || values[0] == "theirs" {
			t.Errorf("%s: %v, want 1 of them, not %q", name, values, "theirs")
		}
	}
}

// The status of a busy server is forwarded, with a time after which to try again.
func TestBusyUpstream(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for _, f := range flows() {
		b.ollama.Script("POST", f.path, ollamatest.Answer{Status: 503, Body: `{"error":"server busy, please try again.  maximum pending requests exceeded"}`})
		if r := b.do("POST", f.path, key, fmt.Sprintf(f.request, "x")); r.status != 503 || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "server busy") {
			t.Errorf("%s: %d %v %s, want 503, a text, %q in it", f.name, r.status, r.header, r.body, "server busy")
		}
	}
}

// Lists and details are small objects. Any other answer becomes a 502; a page of another server is never forwarded.
func TestBadMetadata(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for name, c := range map[string]struct {
		answer ollamatest.Answer
		status int
	}{
		"HTML":     {ollamatest.Answer{Body: "<html>"}, 502},
		"a 500":    {ollamatest.Answer{Status: 500, Body: "<html>"}, 502},
		"unknown":  {ollamatest.Answer{Status: 404, Body: "404 page not found"}, 404},
		"gzip":     {ollamatest.Answer{Body: zipped("{}"), Header: http.Header{"Content-Encoding": {"gzip"}}}, 502},
		"redirect": {ollamatest.Answer{Status: 302, Header: http.Header{"Location": {"/"}}}, 502},
		"cut":      {ollamatest.Answer{Body: `{"models":[]}`, Fault: ollamatest.Close, FaultAt: 130}, 502},
	} {
		for path, method := range map[string]string{"/api/tags": "GET", "/api/ps": "GET", "/v1/models": "GET", "/v1/models/tiny": "GET", "/api/show": "POST"} {
			upstream, body := path, ""
			if path == "/v1/models/tiny" {
				upstream = "/v1/models"
			}
			if method == "POST" {
				body = `{"model":"tiny"}`
			}
			b.ollama.Script(method, upstream, c.answer, c.answer)
			if r := b.do(method, path, key, body); r.status != c.status || r.json(t)["error"] == nil {
				t.Errorf("%s, %s: %d %s", name, path, r.status, r.body)
			}
		}
	}
}

// Each time limit ends with a failure in the client's dialect: with 504 if nothing was sent yet, otherwise within the stream.
func TestUpstreamThatStalls(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	const bound = time.Second
	never := 10 * time.Minute
	for _, c := range []struct {
		name   string
		change func(*server.Options)
		at     func(f *flow) int // bytes of the answer before the silence
		says   string
	}{
		{"UPSTREAM_FIRST_BYTE_TIMEOUT", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = bound, never, never }, func(*flow) int { return 0 }, noAnswer},
		{"UPSTREAM_FIRST_BYTE_TIMEOUT within the header", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = bound, never, never }, func(*flow) int { return 20 }, noAnswer},
		{"UPSTREAM_IDLE_TIMEOUT before the first record", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = never, bound, never }, func(f *flow) int { return len(f.head()) }, silence},
		{"UPSTREAM_IDLE_TIMEOUT", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = never, bound, never }, func(f *flow) int { return 2000 }, silence},
		{"MAX_REQUEST_TIME", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = never, never, bound }, func(*flow) int { return 0 }, tooLong},
		{"MAX_REQUEST_TIME in the stream", func(o *server.Options) { o.FirstByte, o.Idle, o.MaxRequestTime = never, never, bound }, func(f *flow) int { return 2000 }, tooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, setup{slots: 10, change: c.change})
			key := b.user()
			list := flows()
			var all sync.WaitGroup
			for i := range list {
				all.Go(func() {
					f := &list[i]
					at := c.at(f)
					b.ollama.Script("POST", f.path, ollamatest.Answer{Raw: f.wire(), Fault: ollamatest.Hang, FaultAt: at})
					r := b.do("POST", f.path, key, fmt.Sprintf(f.request, "x"))
					text, _, _ := f.seen(f.upTo(at))
					complaint := f.refused(r, 504, c.says)
					if text != "" {
						complaint = f.endsLoudly(r, text, "timeout", c.says)
					}
					if complaint != "" {
						t.Errorf("%s: %s, want none", f.name, complaint)
					}
				})
			}
			all.Wait()
			for _, r := range b.ollama.Requests() {
				if r.Method == "POST" && r.Path != "/api/show" {
					r.WaitClosed()
				}
			}
			if o := b.stats(key)["requests_by_outcome"].(map[string]any); o["timeout"] != float64(len(list)) {
				t.Errorf("booked: %v, want %v", o, float64(len(list)))
			}
		})
	}
}

// deaf is a client that disconnects at the last record of its answer.
type deaf struct {
	*httptest.ResponseRecorder
	end string
}

func (d deaf) Write(p []byte) (int, error) {
	if strings.Contains(string(p), d.end) {
		return 0, http.ErrHandlerTimeout
	}
	return d.ResponseRecorder.Write(p)
}

func (d deaf) WriteString(s string) (int, error) { return d.Write([]byte(s)) }

// The row has the outcome that upstream delivered, even if the last piece does not reach the client.
func TestFailedLastWrite(t *testing.T) {
	b := start(t, setup{})
	key, _ := b.key(`{"name":"deaf","role":"user"}`)
	for _, f := range flows() {
		b.ollama.Script("POST", f.path, ollamatest.Answer{Tokens: 7, PromptTokens: 11})
		w := deaf{httptest.NewRecorder(), f.end[0][:20]}
		if f.name == "chat" || f.name == "completions" {
			w.end = "[DONE]"
		}
		if f.name == "native" {
			w.end = `"done":true`
		}
		aborted := func() (p any) {
			defer func() { p = recover() }()
			r := httptest.NewRequest("POST", f.path, strings.NewReader(fmt.Sprintf(f.request, "x")))
			r.Header.Set("Authorization", "Bearer "+key)
			b.server.ServeHTTP(w, r)
			return nil
		}()
		if aborted != any(http.ErrAbortHandler) || !strings.Contains(w.Body.String(), ollamatest.Word(0)) {
			t.Errorf("%s: %v\n%s", f.name, aborted, w.Body)
		}
	}
	st := b.stats(key)
	if o := st["requests_by_outcome"].(map[string]any); o["ok"] != 5.0 || st["prompt_tokens"] != 55.0 || st["completion_tokens"] != 35.0 || st["estimated_requests"] != 0.0 {
		t.Errorf("booked: %v, want %v, %v, %v, %v", st, 5.0, 55.0, 35.0, 0.0)
	}
}
