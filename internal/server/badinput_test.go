package server_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/store"
)

// The database is closed, so each lookup answers 503. An unknown but well-formed key gets that. A text that is not a key gets 401 without a
// lookup, in every header that can carry a key.
func TestABadKeyNeverReachesTheDatabase(t *testing.T) {
	b := start(t, setup{})
	key := b.user()
	unknown, _ := b.mint()
	closed, err := store.Create(t.Context(), filepath.Join(t.TempDir(), "closed.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	b.server.Auth = auth.New(closed, b.secret, nil, time.Now)
	t.Cleanup(b.server.Auth.Close)
	last := map[bool]string{true: "1", false: "0"}[strings.HasSuffix(key, "0")]
	sum := sha256.Sum256([]byte(key))
	for name, text := range map[string]string{
		"B14 a wrong checksum": key[:len(key)-1] + last, "B15 another prefix": "sk-" + key[3:], "B16 a character too few": key[:len(key)-1],
		"B17 newline": key + "\n", "B17 NUL": key + "\x00", "B17 zero width space": key + "\u200b", "B17 full width": "\uff4f\uff41\uff53_" + key[4:],
		"B18 or": "' OR 1=1--", "B18 drop": "'; DROP TABLE keys;--", "B18 in the right length": key[:15] + "' OR '1'='1'--" + key[29:],
		"B19 long": strings.Repeat("a", 4<<10), "B20 bytes": "\xff\xfe\x80" + key[3:], "B21 SHA-256": hex.EncodeToString(sum[:]), "B21 the stored MAC": hex.EncodeToString(b.secret.MAC(key)),
		"B21 the stored MAC, base64": base64.StdEncoding.EncodeToString(b.secret.MAC(key)),
	} {
		requests := map[string]*http.Request{"Basic": b.request("GET", "/api/tags", "", ""), "path": b.request("GET", "/k/"+url.PathEscape(text)+"/api/tags", "", "")}
		requests["Basic"].SetBasicAuth("any", text)
		if !strings.ContainsAny(text, "\n\x00") { // a header cannot contain these
			requests["Authorization"] = b.request("GET", "/api/tags", text, "")
			requests["x-api-key"] = b.request("GET", "/api/tags", "", "")
			requests["x-api-key"].Header.Set("x-api-key", text)
		}
		for carrier, r := range requests {
			if got := b.send(r); got.status != http.StatusUnauthorized {
				t.Errorf("%s in %s: %d %s, want %d", name, carrier, got.status, got.body, http.StatusUnauthorized)
			}
		}
	}
	// Without this the test would prove nothing.
	if got := b.do("GET", "/api/tags", unknown, ""); got.status != http.StatusServiceUnavailable {
		t.Errorf("a well-formed unknown key: %d, want 503: the database is closed", got.status)
	}
}

// A key in the path may contain encoded characters, and must if it has a slash. The path after the key may not.
func TestAnEncodedKeyInThePath(t *testing.T) {
	const odd = "an/admin+key%of=signs?alone#here"
	b := start(t, setup{})
	b.server.Auth = auth.New(b.store, b.secret, []auth.Static{{Preview: "env-admin", Secret: odd, Key: api.Key{Role: api.RoleAdmin}}}, time.Now)
	t.Cleanup(b.server.Auth.Close)
	spelled := strings.NewReplacer("/", "%2F", "%", "%25", "?", "%3F", "#", "%23").Replace(odd)
	for target, want := range map[string]int{
		"/k/" + spelled + "/api/tags": 200, "/k/" + spelled + "/v1/models/%74iny": 200, "/k/" + spelled + "/api/%74ags": 404, "/k/" + spelled + "%2Fapi/tags": 404,
		"/k/" + strings.ReplaceAll(spelled, "%25", "%2525") + "/api/tags": 401, "/v1/models/%2574iny": 400,
	} {
		header := " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
		if !strings.HasPrefix(target, "/k/") {
			header += "x-api-key: " + odd + "\r\n"
		}
		if status, _ := b.raw(t, "GET "+target+header+"\r\n"); status != want {
			t.Errorf("%s: %d, want %d", target, status, want)
		}
	}
}

// raw sends bytes whose last request asks to close the connection. It returns the first status and everything that came.
func (b *bed) raw(t *testing.T, text string) (status int, all string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) < 12 {
		t.Fatalf("%q: %v, want at least 12", got, err)
	}
	for _, d := range got[9:12] {
		status = status*10 + int(d-'0')
	}
	return status, string(got)
}

// A method that does not concern a path of the table is refused, whatever the target is.
func TestMethodsWithoutAPath(t *testing.T) {
	b := start(t, setup{})
	for _, line := range []string{"CONNECT evil.example:443", "CONNECT /api/chat", "TRACE /", "OPTIONS *", "GET *", "TRACE http://evil.example/"} {
		status, all := b.raw(t, line+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if status != 405 || !strings.Contains(all, "\r\nAllow: GET, ") {
			t.Errorf("%s: %s", line, all)
		}
	}
}

// After a request with an ambiguous end, no bytes are read as another request.
func TestNothingBehindAnAmbiguousEnd(t *testing.T) {
	b := start(t, setup{})
	const plain = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
	const next = plain + "Connection: close\r\n\r\n"
	for name, text := range map[string]string{
		"length and chunks":                   "POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"length and chunks, absolute form":    "POST http://x/api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"length and chunks, OPTIONS *":        "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"length and chunks in HTTP/1.0":       "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.0, which may hide the chunks": "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	} {
		if _, all := b.raw(t, text+next); strings.Count(all, "HTTP/1.") != 1 {
			t.Errorf("%s: %s, want 1", name, all)
		}
	}
	if _, all := b.raw(t, plain+"\r\n"+next); strings.Count(all, "HTTP/1.1 200") != 2 {
		t.Errorf("two plain requests: %s, want 2", all)
	}
}
