package server

import (
	"net/http"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
	"ollama-api-service/web"
)

// contentPolicy lets the documentation pages load only files from this service: no inline script, no eval, no other host, no frame. Both
// pages write style elements, and ReDoc searches in a worker created from a blob.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; " +
	"connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// page answers /docs and /redoc.
func (s *Server) page(x *exchange) error {
	path := x.r.URL.Path
	if slashes := len(path) - len(strings.TrimRight(path, "/")); slashes > 0 {
		// The page's links are relative and would not work below this path.
		x.Header().Set("Location", strings.Repeat("../", slashes)+x.route.template[1:])
		x.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	site, err := s.site()
	if err != nil {
		return err
	}
	x.Header().Set("Content-Security-Policy", contentPolicy)
	return x.sendFile(site.Pages[strings.TrimPrefix(x.route.template, "/")])
}

// file serves the files that the pages load.
func (s *Server) file(x *exchange) error {
	site, err := s.site()
	if err != nil {
		return err
	}
	f := site.Files[x.param]
	if f == nil {
		return api.Errorf(api.CodeNotFound, "no such file: GET %s/docs is the documentation", s.BasePath)
	}
	return x.sendFile(f)
}

// document serves the OpenAPI description of this API.
func (s *Server) document(x *exchange) error {
	f, err := s.openAPI()
	if err != nil {
		return err
	}
	return x.sendFile(f)
}

// sendFile answers with a file, compressed if the client accepts that. A client that asks for this exact version may cache it forever.
// Other clients ask again each time, and get a 304 if the file has not changed.
func (x *exchange) sendFile(f *web.File) error {
	etag := `W/"` + f.Version + `"` // weak, because both encodings have the same tag
	h := x.Header()
	h.Set("Etag", etag)
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache")
	if x.r.URL.RawQuery == "v="+f.Version {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if strings.Contains(x.r.Header.Get("If-None-Match"), etag) {
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	body := f.Gzip
	if takesGzip(x.r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
	} else {
		var err error
		if body, err = f.Plain(); err != nil {
			return err
		}
	}
	return x.send(f.Type, body)
}

// takesGzip reports whether an Accept-Encoding header accepts gzip (RFC 9110, section 12.5.3). An entry for gzip has precedence over "*".
func takesGzip(accept string) bool {
	all := false
	for part := range strings.SplitSeq(accept, ",") {
		coding, weight, _ := strings.Cut(part, ";")
		q, ok := strings.CutPrefix(strings.TrimSpace(weight), "q=")
		n, err := strconv.ParseFloat(q, 64)
		takes := !ok || err == nil && n > 0
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip":
			return takes
		case "*":
			all = takes
		}
	}
	return all
}
