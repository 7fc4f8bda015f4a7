package server_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/server"
)

// coded sends a request with a key and an Accept-Encoding, and returns the body as it is on the wire.
func (b *bed) coded(method, path, key, accept, body string) reply {
	b.t.Helper()
	req := b.request(method, path, key, body)
	req.Header.Set("Accept-Encoding", accept)
	return b.send(req)
}

func unzipped(t *testing.T, r reply) string {
	t.Helper()
	z, err := gzip.NewReader(strings.NewReader(r.body))
	if err != nil {
		t.Fatalf("%v: %q", err, r.body)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestOurAnswersAreCompressed(t *testing.T) {
	b := start(t, setup{})
	plain := b.coded("GET", "/api/keys", adminSecret, "gzip", "")
	if plain.header.Get("Content-Encoding") != "" || plain.header.Get("Vary") != "Accept-Encoding" || plain.body != `{"api_keys":[],"total":0}`+"\n" {
		t.Errorf("a short answer: %v %q", plain.header, plain.body)
	}
	var user string
	for i := range 40 {
		user, _ = b.key(fmt.Sprintf(`{"name":"key %d","role":"user"}`, i))
	}
	b.spend(user, "tiny", 20)
	for _, path := range []string{"/api/keys", "/api/admin/requests", "/api/admin/requests?format=csv", "/api/admin/audit", "/api/admin/stats", "/", "/api/admin/usage?group_by=key,hour,model&limit=1000"} {
		zipped, whole := b.coded("GET", path, adminSecret, "br, gzip;q=0.8", ""), b.coded("GET", path, adminSecret, "identity", "")
		if len(whole.body) <= 1024 {
			continue // its answer is not checked
		}
		text := unzipped(t, zipped)
		if zipped.header.Get("Content-Encoding") != "gzip" || zipped.header.Get("Content-Length") != fmt.Sprint(len(zipped.body)) || len(zipped.body)*2 > len(whole.body) {
			t.Errorf("%s: %v, %d bytes of %d, want %q, %v, at most %v", path, zipped.header, len(zipped.body), len(whole.body), "gzip", fmt.Sprint(len(zipped.body)), len(whole.body))
		}
		if path != "/api/admin/stats" && !strings.Contains(path, "usage") && text != whole.body {
			t.Errorf("%s: the unpacked text differs: got %d bytes, want %d", path, len(text), len(whole.body))
		}
		if zipped.header.Get("Content-Type") != whole.header.Get("Content-Type") || whole.header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %v and %v", path, zipped.header, whole.header)
		}
		head := b.coded("HEAD", path, adminSecret, "gzip", "")
		if head.body != "" || head.status != 200 || head.header.Get("Content-Encoding") != "gzip" {
			t.Errorf("HEAD %s: %d %v %q, want none, 200, %q", path, head.status, head.header, head.body, "gzip")
		}
	}
	for accept, want := range map[string]bool{"": false, "gzip;q=0": false, "*": true, "*;q=0, gzip": true, "*, gzip;q=0": false, "deflate, br": false, "GZIP": true} {
		if r := b.coded("GET", "/api/keys", adminSecret, accept, ""); (r.header.Get("Content-Encoding") == "gzip") != want {
			t.Errorf("Accept-Encoding %q: %v, want %v", accept, r.header, want)
		}
	}
	// A failure is never compressed.
	if r := b.coded("GET", "/api/keys?sort="+strings.Repeat("x", 2000), adminSecret, "gzip", ""); r.status != 400 || r.header.Get("Content-Encoding") != "" {
		t.Errorf("%d %v, want 400, none", r.status, r.header)
	}
}

// An answer with a secret is never compressed, however long the caller's own text is, because the length would reveal the secret.
func TestSecretsAreNotCompressed(t *testing.T) {
	b := start(t, setup{})
	note := strings.Repeat("oas_ ", 199) + "x"
	created := b.coded("POST", "/api/keys", adminSecret, "gzip", `{"name":"k","role":"user","note":"`+note+`","policy":{"num_ctx":"max:8192"}}`)
	preview := created.json(t)["key_preview"].(string)
	rotated := b.coded("POST", "/api/keys/"+preview+"/rotate", adminSecret, "gzip", "")
	for _, r := range []reply{created, rotated} {
		if len(r.body) < 1100 || r.json(t)["api_key"] == nil || r.header.Get("Content-Encoding") != "" {
			t.Errorf("%d bytes, %v", len(r.body), r.header)
		}
	}
	// Routes that change something are never compressed, because their answers may contain a secret.
	for _, line := range b.server.Table() {
		if line.Packs && line.Method != http.MethodGet && line.Method != http.MethodHead {
			t.Errorf("%s %s is compressed", line.Method, line.Template)
		}
	}
	if !slices.ContainsFunc(b.server.Table(), func(l server.Line) bool { return l.Packs }) {
		t.Error("no route is compressed, want some")
	}
}

type keysAnswer struct {
	APIKeys []struct {
		KeyPreview string `json:"key_preview"`
		Name       string
	} `json:"api_keys"`
	Total      int
	NextCursor string `json:"next_cursor"`
}

func TestKeysPageByPage(t *testing.T) {
	b := start(t, setup{})
	// Keys are sorted by the millisecond in which they were created, and two of one millisecond by chance.
	nextMillisecond := func() {
		for now := time.Now().UnixMilli(); time.Now().UnixMilli() == now; {
			runtime.Gosched()
		}
	}
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	late := time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)
	_, gone := b.key(`{"name":"Ärger gone","role":"user","note":"who: Zoë"}`)
	nextMillisecond()
	b.key(`{"name":"beta","role":"admin","expires_at":"` + late + `"}`)
	nextMillisecond()
	b.key(`{"name":"Alpha laptop","role":"user","expires_at":"` + soon + `"}`)
	nextMillisecond()
	_, gamma := b.key(`{"name":"gamma Laptop","role":"user"}`)
	b.do("DELETE", "/api/keys/"+gone, adminSecret, "")
	for query, want := range map[string]string{
		"":                                 "gamma Laptop, Alpha laptop, beta, Ärger gone",
		"sort=created_at":                  "Ärger gone, beta, Alpha laptop, gamma Laptop",
		"sort=name":                        "Alpha laptop, beta, gamma Laptop, Ärger gone",
		"sort=-name":                       "Ärger gone, gamma Laptop, beta, Alpha laptop",
		"sort=expires_at&state=active":     "Alpha laptop, beta, gamma Laptop",
		"state=revoked":                    "Ärger gone",
		"state=active":                     "gamma Laptop, Alpha laptop, beta",
		"state=expiring":                   "Alpha laptop",
		"state=expired":                    "",
		"state=expiring,revoked&sort=name": "Alpha laptop, Ärger gone",
		"q=LAPTOP":                         "gamma Laptop, Alpha laptop",
		"q=%C3%A4rger":                     "Ärger gone",
		"q=zo%C3%AB":                       "Ärger gone",
		"q=" + gamma:                       "gamma Laptop",
		"q=%25":                            "",
		"role=admin":                       "beta",
		"q=laptop&state=active&sort=-name": "gamma Laptop, Alpha laptop",
	} {
		all := ask[keysAnswer](b, "/api/keys?"+query)
		names := []string{}
		for _, k := range all.APIKeys {
			names = append(names, k.Name)
		}
		if got := strings.Join(names, ", "); got != want || all.Total != len(names) || all.NextCursor != "" {
			t.Errorf("%s: %s (%d), want %s", query, got, all.Total, want)
		}
		paged := []string{}
		for cursor := ""; ; {
			page := ask[keysAnswer](b, "/api/keys?limit=1&"+query+"&cursor="+cursor)
			for _, k := range page.APIKeys {
				paged = append(paged, k.Name)
			}
			if page.Total != all.Total || len(page.APIKeys) > 1 {
				t.Errorf("%s: %d of %d, want %v, at most 1", query, len(page.APIKeys), page.Total, all.Total)
			}
			if cursor = page.NextCursor; cursor == "" {
				break
			}
		}
		if got := strings.Join(paged, ", "); got != want {
			t.Errorf("%s, page by page: %s, want %s", query, got, want)
		}
	}
	first := ask[keysAnswer](b, "/api/keys?limit=2")
	b.key(`{"name":"meanwhile","role":"user"}`)
	b.do("DELETE", "/api/keys/"+first.APIKeys[1].KeyPreview, adminSecret, "")
	if second := ask[keysAnswer](b, "/api/keys?limit=2&cursor="+first.NextCursor); second.APIKeys[0].Name != "beta" || second.Total != 5 {
		t.Errorf("a key that was created in the meantime moved the next page: %+v, want %q, 5", second, "beta")
	}
	for _, query := range []string{"state=gone", "sort=mac", "limit=0", "limit=1001", "limit=x", "cursor=x", "sort=name&cursor=" + first.NextCursor, "role=root", "q=" + strings.Repeat("x", 101), "page=1"} {
		if r := b.do("GET", "/api/keys?"+query, adminSecret, ""); r.status != 400 {
			t.Errorf("%s: %d %s, want 400", query, r.status, r.body)
		}
	}
}
