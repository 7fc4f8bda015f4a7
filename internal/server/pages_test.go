package server_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// get sends a request as a browser does, or with another Accept-Encoding, and returns the body as it is on the wire.
func (b *bed) get(method, path string, header ...string) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.url+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return b.send(req)
}

var loaded = regexp.MustCompile(`(?:src|href)="(docs/[^"]+)"`)

func TestPagesAndWhatTheyLoad(t *testing.T) {
	b := start(t, setup{})
	files := map[string]bool{}
	for _, page := range []string{"/docs", "/redoc"} {
		r := b.get("GET", page, "Accept-Encoding", "identity")
		if r.status != 200 || r.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(r.body, `<html lang="en">`) || !strings.Contains(r.body, "width=device-width") {
			t.Fatalf("%s: %d, %v, %.300s, want 200, %q, %s in it, %q in it", page, r.status, r.header, r.body, "text/html; charset=utf-8", `<html lang="en">`, "width=device-width")
		}
		policy := r.header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'", "connect-src 'self';"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: want %s in the policy, got %q", page, want, policy)
			}
		}
		if strings.Contains(policy, "unsafe-eval") || regexp.MustCompile(`script-src[^;]*unsafe`).MatchString(policy) {
			t.Errorf("%s: %q", page, policy)
		}
		if regexp.MustCompile(`<script>|<script [^>]*>[^<]|\son[a-z]+=|style=|(src|href)="(https?:)?//`).MatchString(r.body) {
			t.Errorf("%s has an inline script or loads from another host: %s", page, r.body)
		}
		for _, m := range loaded.FindAllStringSubmatch(r.body, -1) {
			files["/"+m[1]] = true
		}
	}
	if len(files) < 6 {
		t.Errorf("the pages load %v, want at least 6", files)
	}
	for path := range files {
		r := b.get("GET", path, "Accept-Encoding", "br, gzip;q=0.8")
		if r.status != 200 || r.header.Get("Content-Encoding") != "gzip" || r.header.Get("X-Content-Type-Options") != "nosniff" || r.header.Get("Referrer-Policy") == "" {
			t.Errorf("%s: %d, %v, want 200, %q, %q, a text", path, r.status, r.header, "gzip", "nosniff")
			continue
		}
		if versioned := strings.Contains(path, "?v="); versioned != strings.Contains(r.header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: Cache-Control %q", path, r.header.Get("Cache-Control"))
		}
		z, err := gzip.NewReader(strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		unpacked, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		for _, accept := range []string{"identity", "gzip;q=0", "br"} {
			plain := b.get("GET", path, "Accept-Encoding", accept)
			if plain.body != string(unpacked) || plain.header.Get("Content-Encoding") != "" || plain.header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s for %q: %d bytes, %v; unpacked %d, want %v, none, %q", path, accept, len(plain.body), plain.header, len(unpacked), string(unpacked), "Accept-Encoding")
			}
		}
		if head := b.get("HEAD", path, "Accept-Encoding", "gzip"); head.status != 200 || head.body != "" || head.header.Get("Content-Length") != r.header.Get("Content-Length") {
			t.Errorf("HEAD %s: %d, %v", path, head.status, head.header)
		}
		if again := b.get("GET", path, "If-None-Match", r.header.Get("Etag")); again.status != 304 || again.body != "" {
			t.Errorf("%s again: %d, want 304, none", path, again.status)
		}
		if old := b.get("GET", strings.Replace(path, "?v=", "?v=0", 1), "Accept-Encoding", "gzip"); old.header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s with another version: Cache-Control %q, want %q", path, old.header.Get("Cache-Control"), "no-cache")
		}
	}
	if r := b.get("GET", "/docs/nothing.js"); r.status != 404 || !strings.Contains(r.body, `"error"`) {
		t.Errorf("a missing file: got %d %s, want 404", r.status, r.body)
	}
	if r := b.get("GET", "/docs/..%2fopenapi.json"); r.status != 404 {
		t.Errorf("a path as a file name: got %d, want 404", r.status)
	}
}
