package server

import (
	"bytes"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// leastPacked is the size in bytes up to which an answer is not worth compressing.
const leastPacked = 1 << 10

// packed are the routes whose answers are compressed for clients that accept it. All other answers are sent as they are. An answer with
// both a secret and text that another party can choose must never be compressed, because its length would reveal the secret (BREACH). So
// this list has only routes that read: routes that create or change a key answer with the text of the key.
var packed = map[string]bool{
	"/": true, "/health": true, "/api/keys": true, "/api/keys/{key_preview}": true, "/api/stats": true, "/api/queue": true,
	"/api/admin/stats": true, "/api/admin/usage": true, "/api/admin/requests": true, "/api/admin/explain/{request_id}": true,
	"/api/admin/audit": true, "/api/admin/backends": true,
}

func (r *route) packs() bool {
	return r.purpose == own && (r.method == http.MethodGet || r.method == http.MethodHead) && packed[r.template]
}

// packers pools gzip writers, because each has 800 KB of tables.
var packers = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

// pack compresses the body of an answer if it is long enough and the client and the route allow it. It sets the headers that match the body
// it returns.
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

// whole buffers an answer of the typed operations until its length is known.
type whole struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *whole) WriteHeader(status int)      { w.status = status }
func (w *whole) Write(p []byte) (int, error) { return w.body.Write(p) }
