package server_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
)

// sendAll writes the whole request before it reads, as httpx, requests and many SDKs do. It returns the answer.
func (b *bed) sendAll(head string, body io.Reader) (*http.Response, error) {
	b.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, head); err != nil {
		return nil, fmt.Errorf("write the header: %w", err)
	}
	if body != nil {
		if _, err := io.Copy(c, body); err != nil {
			return nil, fmt.Errorf("write the body: %w", err)
		}
	}
	return http.ReadResponse(bufio.NewReader(c), nil)
}

// A client that sends a whole large body before it reads must get the error message, whatever the reason for the refusal is.
func TestRefusedBodyIsReadOn(t *testing.T) {
	const most = 16 << 20
	b := start(t, setup{change: func(o *server.Options) { o.MaxBody = most }})
	user := b.user()
	empty, _ := b.key(`{"name":"used up","role":"user","rate_limit":1}`)
	if r := b.do("POST", "/api/chat", empty, `{"model":"tiny","stream":false,"messages":[]}`); r.status != 200 {
		t.Fatalf("got %d %s, want 200", r.status, r.body)
	}
	for _, c := range []struct {
		name, path, key string
		want            int
	}{
		{"too large", "/api/chat", user, 413},
		{"too large, management", "/api/keys", adminSecret, 413},
		{"over its limit", "/v1/chat/completions", empty, 429},
		{"a wrong key", "/v1/messages", "oas_wrong", 401},
		{"a user on a route of admins", "/api/create", user, 403},
		{"no such path", "/chat/completions", user, 404},
	} {
		for form, head := range map[string]string{
			"with a length": fmt.Sprintf("Content-Length: %d\r\n", most+most/4),
			"in chunks":     "Transfer-Encoding: chunked\r\n",
		} {
			body := io.LimitReader(repeat{' '}, most+most/4)
			if form == "in chunks" {
				body = io.MultiReader(strings.NewReader(fmt.Sprintf("%x\r\n", most+most/4)), body, strings.NewReader("\r\n0\r\n\r\n"))
			}
			resp, err := b.sendAll("POST "+c.path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+c.key+"\r\n"+head+"\r\n", body)
			if err != nil {
				t.Errorf("%s, %s: %v, want %d", c.name, form, err, c.want)
				continue
			}
			if text, err := io.ReadAll(resp.Body); resp.StatusCode != c.want || err != nil || !strings.Contains(string(text), `"error"`) {
				t.Errorf("%s, %s: %d %s %v, want %d with its message", c.name, form, resp.StatusCode, text, err, c.want)
			}
		}
	}
}

// A body longer than twice the bound is not read: the answer comes at once. It also does for a client that sends Expect: 100-continue.
func TestRefusedBodyIsNotReadForEver(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	for name, head := range map[string]string{
		"far too large":   "Content-Length: 99999999\r\n",
		"asks before it":  "Content-Length: 1500000\r\nExpect: 100-continue\r\n",
		"nothing of that": "Content-Length: 5000000\r\n",
	} {
		resp, err := b.sendAll("POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+key+"\r\n"+head+"\r\n", nil)
		if err != nil || resp.StatusCode != 413 {
			t.Errorf("%s: %v %v, want 413 before the body", name, resp, err)
		}
	}
}

// repeat is an endless body that repeats one byte.
type repeat struct{ b byte }

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.b
	}
	return len(p), nil
}
