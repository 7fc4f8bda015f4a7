package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/dialect"
)

const maxManagement = 64 << 10

// newManagement builds the typed operations (keys, statistics) and what huma says of them. The route table stands before
// huma's mux: what is not in the table never gets here.
func (s *Server) newManagement() (http.Handler, *huma.OpenAPI) {
	// Both are package variables of huma; this is the one place that uses it.
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError { return refuse(status, msg, errs) }
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		e := refuse(status, msg, errs)
		exchangeOf(ctx.Context()).err = e.e
		return e
	}
	config := huma.DefaultConfig("Ollama API Service", s.Version)
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // no "$schema" in answers
	config.RejectUnknownQueryParameters = true
	config.Formats = maps.Clone(config.Formats) // it is a package variable of huma
	config.Formats["text/csv"] = csvFormat
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer":    {Type: "http", Scheme: "bearer", Description: "An API key, as `Authorization: Bearer oas_…`"},
		"x-api-key": {Type: "apiKey", In: "header", Name: "x-api-key", Description: "The same key, as Anthropic's clients send it"},
	}
	config.Security = []map[string][]string{{"bearer": {}}, {"x-api-key": {}}}
	mux := http.NewServeMux()
	a := humago.New(mux, config)
	s.keyOperations(a)
	s.statsOperations(a)
	s.usageOperations(a)
	s.auditOperations(a)
	s.backendOperations(a)
	s.queueOperations(a)
	return mux, a.OpenAPI()
}

// manage lets a huma operation answer. A body passes the guard of the inference routes first: huma's decoder, too, would
// take the last of two fields.
func (s *Server) manage(x *exchange) error {
	if x.r.URL.RawQuery != "" && strings.Contains(x.r.URL.RawQuery, ";") {
		return api.Errorf(api.CodeBadRequest, "the query must separate its parts by &")
	}
	fields := keyFields
	switch {
	case strings.HasPrefix(x.route.template, "/api/admin/backends"):
		if fields = backendFields; x.param != "" && !api.ValidBackendName(x.param) {
			return api.Errorf(api.CodeNotFound, "there is no backend of this name: GET /api/admin/backends lists them")
		}
	case x.route.template == "/api/admin/explain/{request_id}":
		if !validID(x.param) {
			return errUnknownRequest
		}
	case x.param != "" && !auth.ValidPreview(x.param):
		return api.Errorf(api.CodeNotFound, "there is no key with this key_preview (oas_ and ten characters)")
	}
	r := x.r.WithContext(context.WithValue(x.r.Context(), exchangeKey{}, x))
	u, err := url.ParseRequestURI(x.path) // as the table has understood it
	if err != nil {
		return api.Wrap(api.CodeBadRequest, err, "the path cannot be read")
	}
	u.RawQuery = r.URL.RawQuery
	r.Method, r.URL = x.route.method, u
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		body, err := x.readBody(maxManagement)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(body)) == 0 && x.param != "" {
			body = []byte("{}") // rotate needs no field
		}
		if err := dialect.Check(body, fields...); err != nil {
			return err
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		// Ollama's own examples are curl -d without a content type, and so are ours.
		r.Header = r.Header.Clone()
		r.Header.Set("Content-Type", "application/json")
	}
	x.csv = strings.HasPrefix(r.Header.Get("Accept"), "text/csv")
	r.Header.Del("Accept")
	if !x.route.packs() {
		s.management.ServeHTTP(x, r)
		return nil
	}
	answer := &whole{ResponseWriter: x, status: http.StatusOK}
	s.management.ServeHTTP(answer, r)
	return x.answer(answer.status, x.Header().Get("Content-Type"), answer.body.Bytes())
}

// refusal is an api.Error as huma writes one. Its body and its status are those of error.go.
type refusal struct{ e *api.Error }

func (r refusal) Error() string                { return r.e.Error() }
func (r refusal) GetStatus() int               { return statuses[r.e.Code] }
func (r refusal) ContentType(string) string    { return "application/json" }
func (r refusal) MarshalJSON() ([]byte, error) { return nativeError(r.e), nil }
func (r refusal) Schema(huma.Registry) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{Type: huma.TypeObject, Required: []string{"error", "detail"}, Properties: map[string]*huma.Schema{"error": text, "detail": text}}
}

// refuse makes a refusal of what huma found. Of a value it names the place, never the value.
func refuse(status int, msg string, errs []error) refusal {
	var own *api.Error
	for _, err := range errs {
		if errors.As(err, &own) {
			return refusal{own}
		}
	}
	if status >= 500 {
		return refusal{api.AsError(errors.Join(append(errs, errors.New(msg))...))}
	}
	for _, err := range errs {
		var at huma.ErrorDetailer
		if errors.As(err, &at) {
			d := at.ErrorDetail()
			msg = fmt.Sprintf("%s: %s", strings.TrimPrefix(d.Location, "body."), d.Message)
			break
		}
	}
	if strings.Contains(msg, "json:") {
		msg = "a field of the body has a value that it cannot hold" // Go's own sentence repeats the value
	}
	return refusal{api.Errorf(api.CodeBadRequest, "%s", msg)}
}

// changeWait is how long a change waits for a database that another process holds.
const changeWait = 5 * time.Second

// operation registers one typed operation. Its errors are ours, and are noted for the log.
func operation[I, O any](a huma.API, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	op.Errors = append(op.Errors, 400, 401, 403)
	// The body is read already. huma's own bound of 5 s would stay with the connection, and when it passes, net/http takes every
	// request on it, now and later, for one whose client has left.
	op.BodyReadTimeout = -1
	huma.Register(a, op, func(ctx context.Context, in *I) (*O, error) {
		if op.Method != http.MethodGet {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, changeWait)
			defer cancel()
		}
		out, err := handle(ctx, in)
		if err == nil {
			return out, nil
		}
		e := api.AsError(err)
		x := exchangeOf(ctx)
		x.err = e
		x.retryHeaders(e)
		return nil, refusal{e}
	})
}
