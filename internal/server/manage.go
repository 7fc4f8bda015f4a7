package server

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
)

// caller returns the part of the request that the typed operations use.
func (x *exchange) caller() *admin.Caller {
	return &admin.Caller{
		Key: x.key, Addr: addressText(x.addr), CSV: strings.HasPrefix(x.r.Header.Get("Accept"), "text/csv"),
		DefaultLimits: x.live.DefaultLimits, StaticAdmin: x.live.StaticAdmin,
		Failed: func(e *api.Error) int {
			x.err = e
			x.retryHeaders(e)
			return statuses[e.Code]
		},
	}
}

// manage lets a typed operation answer. It first checks the body as the inference routes do, because huma's decoder would accept a
// duplicate field and use its last value.
func (s *Server) manage(x *exchange) error {
	if x.r.URL.RawQuery != "" && strings.Contains(x.r.URL.RawQuery, ";") {
		return api.Errorf(api.CodeBadRequest, "separate the parts of the query with &")
	}
	if err := admin.CheckParam(x.route.template, x.param); err != nil {
		return err
	}
	r := x.caller().Request(x.r)
	u, err := url.ParseRequestURI(x.path) // as the table has read it
	if err != nil {
		return api.Wrap(api.CodeBadRequest, err, "the path cannot be read")
	}
	u.RawQuery = r.URL.RawQuery
	r.Method, r.URL = x.route.method, u
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		body, err := x.readBody(admin.MaxBody)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(body.Bytes())) == 0 && x.param != "" {
			body = dialect.BodyOf([]byte("{}")) // rotate needs no field
		}
		if err := body.Check(admin.Fields(x.route.template)...); err != nil {
			return err
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body.Bytes())), int64(body.Size())
		// Ollama's examples, and ours, use curl -d without a content type.
		r.Header = r.Header.Clone()
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Del("Accept")
	if !x.route.packs() {
		s.admin.Answer(x, r)
		return nil
	}
	answer := &whole{ResponseWriter: x, status: http.StatusOK}
	s.admin.Answer(answer, r)
	return x.answer(answer.status, x.Header().Get("Content-Type"), answer.body.Bytes())
}
