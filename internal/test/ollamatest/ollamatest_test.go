package ollamatest_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ollama-api-service/internal/test/ollamatest"
)

// exchange sends one request on a new connection and returns every byte of the answer until the server closes it.
func exchange(t *testing.T, srv *ollamatest.Server, method, path, body string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	raw, err := io.ReadAll(c)
	return string(raw), err
}

// The request of each recording gets its answer byte for byte. The date, clock values and random numbers are part of the recording.
func TestRecordingsComeBackByteForByte(t *testing.T) {
	srv := ollamatest.Start(t)
	paths := map[string]string{
		"generate": "/api/generate", "chat": "/api/chat", "embed": "/api/embed", "embeddings": "/api/embeddings", "show": "/api/show",
		"v1-chat": "/v1/chat/completions", "v1-completions": "/v1/completions", "v1-embeddings": "/v1/embeddings",
		"v1-responses": "/v1/responses", "v1-messages": "/v1/messages",
	}
	files, err := filepath.Glob(filepath.Join(ollamatest.Dir(), "ollama-0.24.0", "*.request.json"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d recordings found, %v, want at least 20", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".request.json")
		path := paths[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "-usage"), "-stream"), "-unload"), "-load")]
		if rest, ok := strings.CutPrefix(name, "error-unknown-model-"); ok {
			path = paths[rest]
		}
		if path == "" {
			continue // error-malformed and error-option-type do not belong to one path
		}
		t.Run(name, func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := exchange(t, srv, "POST", path, string(body))
			if err != nil {
				t.Fatal(err)
			}
			want := string(ollamatest.Recording(name))
			if strings.HasPrefix(name, "error-") {
				// Errors are generated, not replayed: only the date differs.
				got, want = withoutDate(got), withoutDate(want)
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
	for name, target := range map[string]string{
		"root": "GET /", "head-root": "HEAD /", "version": "GET /api/version", "tags": "GET /api/tags", "ps": "GET /api/ps",
		"v1-models": "GET /v1/models", "v1-model": "GET /v1/models/tiny", "error-path": "GET /nothing", "error-method": "GET /api/chat",
		"error-empty-body": "POST /api/chat",
	} {
		t.Run(name, func(t *testing.T) {
			method, path, _ := strings.Cut(target, " ")
			got, err := exchange(t, srv, method, path, "")
			if want := string(ollamatest.Recording(name)); err != nil || withoutDate(got) != withoutDate(want) {
				t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
			}
		})
	}
}

func withoutDate(raw string) string {
	var lines []string
	for _, l := range strings.SplitAfter(raw, "\n") {
		if !strings.HasPrefix(l, "Date:") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}

// A generated answer with as many tokens as a recording has the same shape, field by field and chunk by chunk.
func TestGeneratedAnswersHaveTheRecordedShape(t *testing.T) {
	for _, name := range []string{
		"chat-stream", "generate-stream", "v1-chat-stream", "v1-chat-stream-usage", "v1-completions-stream", "v1-completions-stream-usage",
		"v1-messages-stream", "chat", "generate", "v1-chat", "v1-completions", "v1-messages",
	} {
		t.Run(name, func(t *testing.T) {
			srv := ollamatest.Start(t)
			base, _, _ := strings.Cut(name, "-stream")
			path := map[string]string{
				"chat": "/api/chat", "generate": "/api/generate", "v1-chat": "/v1/chat/completions",
				"v1-completions": "/v1/completions", "v1-messages": "/v1/messages",
			}[base]
			body := string(ollamatest.RecordedRequest(name))
			want, _ := exchange(t, srv, "POST", path, body)
			srv.Script("POST", path, ollamatest.Answer{Tokens: 8})
			got, err := exchange(t, srv, "POST", path, body)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := shape(t, got), shape(t, want); g != w {
				t.Errorf("got shape\n%s\nwant\n%s", g, w)
			}
		})
	}
}

// shape is the answer without its strings and numbers, except for values that must be equal.
func shape(t *testing.T, raw string) string {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintln(&b, res.Status, res.TransferEncoding, res.Header["Content-Type"])
	for line := range strings.Lines(string(body)) {
		prefix, text := "", strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(text, "data: "); ok {
			prefix, text = "data: ", rest
		}
		fmt.Fprintln(&b, prefix+keys(text))
	}
	return b.String()
}

// keys lists the tokens of a JSON text in order, with values replaced by their types; usage numbers stay.
func keys(text string) string {
	d := json.NewDecoder(strings.NewReader(text))
	var out []string
	for {
		tok, err := d.Token()
		if err != nil {
			break
		}
		switch v := tok.(type) {
		case json.Delim, bool, nil:
			out = append(out, fmt.Sprint(v))
		case float64:
			if v == 0 || v == 8 || v == 17 || v == 25 {
				out = append(out, fmt.Sprint(v))
			} else if len(out) == 0 || out[len(out)-1] != "number" {
				out = append(out, "number") // a run of them is the context array
			}
		case string:
			if d.More() || strings.Contains("length model usage done delta", v) {
				out = append(out, identifier(v))
			} else {
				out = append(out, "string")
			}
		}
	}
	if len(out) == 0 {
		return text
	}
	return strings.Join(out, " ")
}

// identifier hides words and IDs, which differ between answers.
func identifier(s string) string {
	if strings.HasPrefix(s, " ") || strings.Contains(s, "-") || strings.HasPrefix(s, "msg_") {
		return "string"
	}
	return s
}

func TestRequestsAreRecordedWhole(t *testing.T) {
	srv := ollamatest.Start(t)
	body := `{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":false}`
	req, _ := http.NewRequest("POST", srv.URL+"/api/chat?a=b", strings.NewReader(body))
	req.Header.Set("X-One", "1")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body) // closing it early could end the connection before the server has written everything
	res.Body.Close()
	r := srv.WaitRequest(1)
	r.WaitAnswered()
	got := fmt.Sprintln(r.Method, r.Path, r.Query, r.Header.Get("X-One"), string(r.Body), r.ContentLength, r.Conn, r.Host)
	want := fmt.Sprintln("POST", "/api/chat", "a=b", "1", body, len(body), 1, strings.TrimPrefix(srv.URL, "http://"))
	if got != want {
		t.Errorf("recorded %swant %s", got, want)
	}
}

func TestGateHoldsEachChunkBack(t *testing.T) {
	srv := ollamatest.Start(t)
	gate := make(chan struct{})
	srv.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 3, Gate: gate})
	res, err := http.Post(srv.URL+"/api/chat", "", strings.NewReader(`{"model":"tiny","messages":[{}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	in := bufio.NewReader(res.Body)
	for i := range 3 {
		gate <- struct{}{}
		line, err := in.ReadString('\n')
		if err != nil || !strings.Contains(line, ollamatest.Word(i)) {
			t.Fatalf("chunk %d: %q, %v, want %v in it", i, line, err, ollamatest.Word(i))
		}
		if in.Buffered() > 0 {
			t.Fatalf("after chunk %d, more arrived than the gate allowed", i)
		}
	}
	select {
	case <-srv.WaitRequest(1).Answered:
		t.Fatal("answered before the gate opened for the last chunk")
	default:
	}
	close(gate)
	if line, _ := in.ReadString('\n'); !strings.Contains(line, `"done":true`) {
		t.Fatalf("last line %q, want %s in it", line, `"done":true`)
	}
	srv.WaitRequest(1).WaitAnswered()
}

func TestALeavingPeerIsSeen(t *testing.T) {
	srv := ollamatest.Start(t)
	for i, a := range []ollamatest.Answer{{Tokens: 3, Gate: make(chan struct{})}, {Fault: ollamatest.Hang}} {
		srv.Script("POST", "/api/chat", a)
		c, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		body := `{"model":"tiny","messages":[{}]}`
		fmt.Fprintf(c, "POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		r := srv.WaitRequest(i + 1)
		c.Close()
		r.WaitClosed()
		select {
		case <-r.Answered:
			t.Error("counted as answered")
		default:
		}
	}
}

func TestFaults(t *testing.T) {
	body := `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`
	t.Run("close after a number of bytes", func(t *testing.T) {
		srv := ollamatest.Start(t)
		whole, _ := exchange(t, srv, "POST", "/api/chat", body)
		for _, n := range []int{0, 1, 30, len(whole) - 1} {
			srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Close, FaultAt: n})
			got, err := exchange(t, srv, "POST", "/api/chat", body)
			if err != nil || got != whole[:n] {
				t.Errorf("at %d: %d bytes arrived, %v", n, len(got), err)
			}
		}
	})
	t.Run("close after the header", func(t *testing.T) {
		srv := ollamatest.Start(t)
		srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Close, FaultAt: ollamatest.AfterHeader})
		got, err := exchange(t, srv, "POST", "/api/chat", body)
		if err != nil || !strings.HasSuffix(got, "\r\n\r\n") || strings.Contains(got, "{") {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		srv := ollamatest.Start(t)
		srv.Script("POST", "/api/chat", ollamatest.Answer{Fault: ollamatest.Reset, FaultAt: 0})
		if _, err := exchange(t, srv, "POST", "/api/chat", body); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("no terminal record", func(t *testing.T) {
		srv := ollamatest.Start(t)
		srv.Script("POST", "/api/chat", ollamatest.Answer{Tokens: 2, NoTerminal: true})
		got, err := exchange(t, srv, "POST", "/api/chat", body)
		if err != nil || strings.Contains(got, `"done":true`) || !strings.HasSuffix(got, "0\r\n\r\n") {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("informational, header, status", func(t *testing.T) {
		srv := ollamatest.Start(t)
		srv.Script("POST", "/api/chat", ollamatest.Answer{
			Informational: []string{"103 Early Hints"}, Status: 302,
			Header: http.Header{"Location": {"/elsewhere"}, "Set-Cookie": {"a=b"}, "Content-Type": nil}, Body: "moved",
		})
		got, _ := exchange(t, srv, "POST", "/api/chat", body)
		for _, want := range []string{"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 302 Found\r\n", "Location: /elsewhere\r\n", "Set-Cookie: a=b\r\n", "Content-Length: 5\r\n\r\nmoved"} {
			if !strings.Contains(got, want) {
				t.Errorf("got %[2]q, want it to contain %[1]q", want, got)
			}
		}
		if strings.Contains(got, "Content-Type") {
			t.Errorf("the content type was not removed: %q, want no %q", got, "Content-Type")
		}
	})
	t.Run("until close, split, own chunks", func(t *testing.T) {
		srv := ollamatest.Start(t)
		huge := strings.Repeat("x", 1<<20) + "\n"
		srv.Script("POST", "/api/chat", ollamatest.Answer{Chunks: []string{"not json\n", huge}, UntilClose: true}, ollamatest.Answer{Chunks: []string{"abc"}, Split: 2})
		got, _ := exchange(t, srv, "POST", "/api/chat", body)
		if !strings.HasSuffix(got, "Content-Type: application/x-ndjson\r\nDate: Mon, 23 Nov 2026 12:59:03 GMT\r\n\r\nnot json\n"+huge) {
			t.Errorf("%d bytes: %.300q", len(got), got)
		}
		got, _ = exchange(t, srv, "POST", "/api/chat", body)
		if !strings.HasSuffix(got, "\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") {
			t.Errorf("%q", got)
		}
	})
	t.Run("early answer", func(t *testing.T) {
		srv := ollamatest.Start(t)
		srv.Script("POST", "/api/blobs/sha256:00", ollamatest.Answer{Status: 200, Early: true})
		c, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v, want 200", res, err)
		}
	})
}

func TestConnectionsAreReusedAndCanBeClosed(t *testing.T) {
	srv := ollamatest.Start(t)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func() {
		t.Helper()
		res, err := client.Get(srv.URL + "/api/version")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	get()
	get()
	if n := srv.Connections(); n != 1 {
		t.Fatalf("%d connections for two requests, want 1", n)
	}
	srv.WaitRequest(2).WaitAnswered()
	srv.CloseConnections()
	srv.WaitRequest(2).WaitClosed()
	get()
	if n := srv.Connections(); n != 2 {
		t.Fatalf("%d connections after the first was closed, want 2", n)
	}
}

func TestModels(t *testing.T) {
	srv := ollamatest.Start(t)
	srv.Models("llama2:latest", "qwen3:4b")
	tags, _ := exchange(t, srv, "GET", "/api/tags", "")
	_, body, _ := strings.Cut(tags, "\r\n\r\n")
	var list struct {
		Models []struct{ Name, Digest string }
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Models) != 2 || list.Models[1].Name != "qwen3:4b" || list.Models[0].Digest == list.Models[1].Digest {
		t.Errorf("%+v, %v, want 2 of them, %q, not %v", list, err, "qwen3:4b", list.Models[1].Digest)
	}
	if got, _ := exchange(t, srv, "POST", "/api/chat", `{"model":"LLAMA2","messages":[{}],"stream":false}`); !strings.Contains(got, `"model":"LLAMA2"`) {
		t.Errorf("the answer does not repeat the model: %q, want %s in it", got, `"model":"LLAMA2"`)
	}
	if got, _ := exchange(t, srv, "POST", "/api/chat", `{"model":"tiny","messages":[{}]}`); !strings.HasPrefix(got, "HTTP/1.1 404 ") {
		t.Errorf("a model that is not installed: %q, want %q at its start", got, "HTTP/1.1 404 ")
	}
}

func TestManagement(t *testing.T) {
	srv := ollamatest.Start(t)
	pull, _ := exchange(t, srv, "POST", "/api/pull", `{"model":"","name":"x"}`)
	if !strings.Contains(pull, "pulling manifest") || !strings.Contains(pull, `{"status":"success"}`) {
		t.Errorf("pull: %q, want %q in it, %s in it", pull, "pulling manifest", `{"status":"success"}`)
	}
	once, _ := exchange(t, srv, "POST", "/api/pull", `{"model":"x","stream":false}`)
	if !strings.HasSuffix(once, "\r\n\r\n"+`{"status":"success"}`) {
		t.Errorf("pull without stream: %q", once)
	}
	const ofHello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	if got, _ := exchange(t, srv, "POST", "/api/blobs/"+ofHello, "hello"); !strings.HasPrefix(got, "HTTP/1.1 201 ") {
		t.Errorf("blob: %q, want %q at its start", got, "HTTP/1.1 201 ")
	}
	if got, _ := exchange(t, srv, "POST", "/api/blobs/"+ofHello, "other"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("wrong blob: %q, want %q at its start", got, "HTTP/1.1 400 ")
	}
	if got, _ := exchange(t, srv, "DELETE", "/api/delete", `{"name":"tiny"}`); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !bytes.Contains([]byte(got), []byte("Content-Length: 0")) {
		t.Errorf("delete: %q", got)
	}
}

func TestTLS(t *testing.T) {
	srv := ollamatest.StartTLS(t)
	pool := http.DefaultTransport.(*http.Transport).Clone()
	pool.TLSClientConfig = tlsTrusting(srv)
	client := &http.Client{Transport: pool}
	defer client.CloseIdleConnections()
	res, err := client.Get(srv.URL + "/api/version")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != `{"version":"0.0.0"}` {
		t.Errorf("%s, want %s", b, `{"version":"0.0.0"}`)
	}
}

func tlsTrusting(srv *ollamatest.Server) *tls.Config {
	trusted := x509.NewCertPool()
	trusted.AddCert(srv.Certificate)
	return &tls.Config{RootCAs: trusted}
}
