package server_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/test/ollamatest"
)

// fuzzed is a server with one key that may use one model.
type fuzzed struct {
	*bed
	key string
}

// sent returns the requests that clients have caused upstream since the last call, without the gateway's own requests about the model. It
// waits for requests under way, because one may go upstream after its client has left, and would count for the next input.
func (z *fuzzed) sent() []*ollamatest.Request {
	<-z.server.NoneUnderWay()
	return slices.DeleteFunc(z.ollama.Forget(), func(r *ollamatest.Request) bool { return r.Header.Get("User-Agent") == backend.Agent })
}

// keyMark represents the key in an input, because each process creates its own key.
const keyMark = "oas_KEY"

func startFuzzed(f *testing.F) *fuzzed {
	b := start(f, setup{change: func(o *server.Options) { o.Log = slog.New(slog.DiscardHandler) }})
	b.ollama.Models("tiny:latest", "evil:latest")
	key, _ := b.key(`{"name":"fuzz","role":"user","rate_limit":null,"models":["tiny"]}`)
	b.ollama.Forget()
	return &fuzzed{b, key}
}

// passes are the requests that a user's key may cause upstream, and the header fields that they may have.
var (
	passes = map[string]bool{
		"POST /api/generate": true, "POST /api/chat": true, "POST /api/embed": true, "POST /api/embeddings": true, "POST /api/show": true,
		"POST /v1/chat/completions": true, "POST /v1/completions": true, "POST /v1/embeddings": true, "POST /v1/responses": true, "POST /v1/messages": true,
		"GET /api/tags": true, "HEAD /api/tags": true, "GET /api/ps": true, "GET /v1/models": true,
	}
	passedHeader = map[string]bool{"Host": true, "Content-Type": true, "Content-Length": true, "Accept": true, "User-Agent": true}
)

// wrong returns an error that names the part of an upstream request that was not authorized.
func (z *fuzzed) wrong(r *ollamatest.Request) error {
	if !passes[r.Method+" "+r.RequestURI] {
		return fmt.Errorf("%s %q went upstream", r.Method, r.RequestURI)
	}
	for name, values := range r.Header {
		if !passedHeader[name] || strings.Contains(strings.Join(values, " "), z.key) {
			return fmt.Errorf("the header %q went upstream", name)
		}
	}
	if r.Method != http.MethodPost {
		return nil
	}
	// Ollama reads a body with encoding/json, which uses the last of two names, in upper or lower case.
	var body struct{ Model, Name string }
	var wrongType *json.UnmarshalTypeError
	if err := json.Unmarshal(r.Body, &body); err != nil && !errors.As(err, &wrongType) {
		return fmt.Errorf("a body that is not JSON went upstream: %q", r.Body)
	}
	if body.Model == "" {
		body.Model = body.Name
	}
	if m, _, err := api.ParseModel(body.Model); err != nil || m.String() != "tiny:latest" {
		return fmt.Errorf("the model %q went upstream", body.Model)
	}
	return nil
}

var tinyBody = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"prompt":"x","input":"x","max_tokens":2,"stream":false}`

// FuzzPaths checks that a target reaches Ollama only if it matches a row of the route table, and only with the path of that row.
func FuzzPaths(f *testing.F) {
	z := startFuzzed(f)
	upstream := map[string]string{}
	for _, line := range z.server.Table() {
		f.Add(line.Method, line.Template)
		f.Add(line.Method, "/k/"+keyMark+line.Template)
		upstream[line.Method+" "+line.Template] = line.Upstream
	}
	for _, target := range []string{
		"//api/chat", "/api/../api/chat", "/api/./chat", "/api/%2e%2e/api/chat", "/api%2fchat", "/api/%63hat", "/API/chat", "/api/chat/", "/api/chat;x", `/api\chat`,
		"/api%5cchat", "/api/chat%00", "/api/chat%zz", "/api/%c0%afchat", "http://evil.test/api/chat", "/api/chat?a=%zz;b", "/api/chat?model=evil", "*", "evil.test:443",
		"/v1/models/..%2f..%2fapi%2fdelete", "/v1/models/tiny", "/v1/models/library%2Ftiny", "/api/blobs/sha256:../../x", "/k//api/chat", "/k/" + keyMark + "//api/chat", "/k/%6fas_KEY/api/chat",
		"/healthz/../api/chat", "/api/chat#x", "/api/chat%20", "/api/chat%3f", "/docs/..%2fapi%2ftags", "/k/" + keyMark + "/k/" + keyMark + "/api/tags",
	} {
		f.Add("POST", target)
		f.Add("GET", target)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		raw := method + " " + strings.ReplaceAll(target, keyMark, z.key) + " HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: " + fmt.Sprint(len(tinyBody)) + "\r\n"
		if !strings.HasPrefix(target, "/k/") {
			raw += "Authorization: Bearer " + z.key + "\r\n"
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n" + tinyBody)))
		if err != nil {
			return // net/http refuses it before the service sees it
		}
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		z.server.ServeHTTP(w, r)
		if w.Code >= 500 || w.Code >= 300 && w.Code < 400 && w.Code != http.StatusNotModified {
			t.Fatalf("%s %q: %d %s", method, target, w.Code, w.Body)
		}
		for _, seen := range z.sent() {
			if err := z.wrong(seen); err != nil {
				t.Fatalf("%s %q: %v", method, target, err)
			}
			path, _, _ := strings.Cut(r.RequestURI, "?")
			if rest, ok := strings.CutPrefix(strings.TrimLeft(path, "/"), "k/"); ok {
				_, path, _ = strings.Cut(rest, "/")
			}
			path = "/" + strings.Join(strings.FieldsFunc(path, func(c rune) bool { return c == '/' }), "/") // doubled slashes mean one
			if model, ok := strings.CutPrefix(path, "/v1/models/"); ok && !strings.Contains(model, "/") {
				path = "/v1/models/{model}"
			}
			// The answer about one model is made from the list.
			want := upstream[r.Method+" "+path]
			if r.Method == http.MethodHead {
				want = cmp.Or(want, upstream["GET "+path])
			}
			if want == "" || want != seen.Path {
				t.Fatalf("%s %q reached Ollama as %s, want a text, %v", method, target, seen.Path, seen.Path)
			}
		}
	})
}

const (
	settle = 20 * time.Millisecond // for an answer to a request that may be incomplete
	ending = 10 * time.Second
)

var (
	statusLine = regexp.MustCompile(`(?m)^HTTP/1\.[01] (\d{3}) `)
	behind     = "GET /healthz HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n"
)

// FuzzFraming sends any bytes over a connection. Nothing may panic, each answer must be one that the service can give, and at most one
// request for each key in the bytes may reach Ollama.
func FuzzFraming(f *testing.F) {
	z := startFuzzed(f)
	length := fmt.Sprint(len(tinyBody))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(tinyBody), tinyBody)
	head := "POST /api/chat HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer " + keyMark + "\r\n"
	for _, raw := range []string{
		head + "Content-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Transfer-Encoding: chunked\r\n\r\n" + chunked,
		head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
		head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + tinyBody,
		head + "Content-Length: +5\r\n\r\n" + tinyBody,
		head + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked,
		head + "Transfer-Encoding : chunked\r\n\r\n" + chunked,
		head + "Transfer-Encoding: chunked\r\n\r\n" + strings.ReplaceAll(chunked, "\r\n", "\n"),
		head + "X: a\r\n b\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Expect: 100-continue\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Connection: close, Authorization\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Idempotency-Key: x\r\nX_Api_Key: y\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "User-Agent: x Bearer " + keyMark + "\r\nAccept: " + keyMark + "\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Content-Encoding: gzip\r\nContent-Length: " + length + "\r\n\r\n" + tinyBody,
		head + "Content-Length: " + length + "\r\n\r\n" + tinyBody + "POST /api/delete HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{\"model\":\"tiny\"}",
		"GET /api/tags HTTP/1.1\r\nHost: a\r\nx-api-key: " + keyMark + "\r\n\r\n",
		"GET /k/" + keyMark + "/v1/models HTTP/1.0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
	} {
		f.Add([]byte(raw))
	}
	address := strings.TrimPrefix(z.url, "http://")
	f.Fuzz(func(t *testing.T, raw []byte) {
		said := z.converse(t, address, bytes.ReplaceAll(raw, []byte(keyMark), []byte(z.key)))
		for _, line := range statusLine.FindAllStringSubmatch(said, -1) {
			// net/http answers 501 and 505 to unknown codings and versions.
			if line[1] >= "500" && line[1] != "501" && line[1] != "505" {
				t.Fatalf("%q got the answer %q", raw, said)
			}
		}
		if strings.Contains(said, z.key) {
			t.Fatalf("the key was echoed to %q: %q, want no key", raw, said)
		}
		seen := z.sent()
		if shown := bytes.Count(raw, []byte(keyMark)); len(seen) > shown {
			t.Fatalf("%q contains %d keys, but %d requests went upstream, want at most %v", raw, shown, len(seen), shown)
		}
		for _, r := range seen {
			if err := z.wrong(r); err != nil {
				t.Fatalf("%q: %v", raw, err)
			}
		}
	})
}

// converse sends the bytes and then a request that closes the connection. It returns everything that the server sends.
func (z *fuzzed) converse(t *testing.T, address string, raw []byte) string {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	deadline := func(d time.Duration) {
		if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = c.Write(append(raw, behind...)) // the server may already have reset the connection
	var said bytes.Buffer
	deadline(settle)
	if _, err := io.Copy(&said, c); err == nil {
		return said.String()
	}
	_ = c.(*net.TCPConn).CloseWrite()
	deadline(ending)
	_, err = io.Copy(&said, c)
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
		t.Fatalf("the connection of %q did not end", raw)
	}
	return said.String()
}
