package server

import (
	"bytes"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// leastPacked is the size from which an answer is worth compressing, in bytes.
const leastPacked = 1 << 10

// packed are the routes whose answers are compressed for clients that accept it; all others are sent as they are. An answer that has a
// secret and something that others can choose must never be one of them, because its length would betray the secret (BREACH). So it is a
// list of what reads only: what makes a key, or changes one, answers with its text.
var packed = map[string]bool{
	"/": true, "/health": true, "/api/keys": true, "/api/keys/{key_preview}": true, "/api/stats": true, "/api/queue": true, "/api/admin/stats": true,
	"/api/admin/usage": true, "/api/admin/requests": true, "/api/admin/audit": true, "/api/admin/explain/{request_id}": true, "/api/admin/backends": true,
}

func (r *route) packs() bool {
	return r.class == own && (r.method == http.MethodGet || r.method == http.MethodHead) && packed[r.template]
}

// packers are writers that were used before: each has 800 KB of tables.
var packers = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

// pack compresses the body of an answer if that is worth it, and the client and the route allow it. It sets the header for what it
// returns.
func (x *exchange) pack(body []byte) ([]byte, error) {
	if !x.route.packs() {
		return body, nil
	}
	x.Header().Add("Vary", "Accept-Encoding")
	if len(body) <= leastPacked || !takesGzip(x.r.Header.Get("Accept-Encoding")) {
		return body, nil
	}
	var b bytes.Buffer
	w := packers.Get().(*gzip.Writer)
	defer packers.Put(w)
	w.Reset(&b)
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	x.Header().Set("Content-Encoding", "gzip")
	return b.Bytes(), nil
}

// whole holds an answer of the typed operations until its length is known.
type whole struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *whole) WriteHeader(status int)      { w.status = status }
func (w *whole) Write(p []byte) (int, error) { return w.body.Write(p) }
