// Package admin has the typed operations of the service's own API: keys, statistics, usage, backends, the queue, explanations and the audit
// trail. The route table of package server decides who reaches them.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/explain"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/sched"
	"ollama-api-service/internal/store"
)

// MaxBody bounds the body of an operation, in bytes.
const MaxBody = 64 << 10

// Options are what the operations read and change. All but Refuses and Means must be set.
type Options struct {
	Version string
	Log     *slog.Logger
	Store   *store.Store
	Auth    *auth.Authenticator
	Secret  auth.Secret
	Random  io.Reader // of new keys
	Limits  *limit.Memory
	Books   *books.Books
	Fleet   *backend.Fleet
	Sched   *sched.Scheduler
	Recent  *explain.Recent

	Means   dial.Means           // what a server is reached with unless an admin says otherwise
	Static  map[string]bool      // names of the servers that the settings name
	Refuses func(*url.URL) error // why an address cannot be a server's; nil refuses none
	// Connect makes the service ready for requests to a server, Renew makes it use new connections, and Disconnect drops its connections.
	Connect, Renew, Disconnect func(*backend.Backend)
	// From is the address of a change as the log may show it.
	From func(api.Change) string
}

// Service answers the operations. New makes one.
type Service struct {
	Options
	handler http.Handler
	api     *huma.OpenAPI
}

// Caller is the request that an operation answers: its key, and the settings that it sees.
type Caller struct {
	Key           *api.Key
	Addr          string // as the audit trail has it
	CSV           bool   // accepts CSV before JSON
	DefaultLimits map[api.Role]int64
	StaticAdmin   bool // an admin key outside the store exists
	// Failed notes an error for the log and the header of the answer, and returns its status.
	Failed func(*api.Error) int
}

type callerKey struct{}

func callerOf(ctx context.Context) *Caller { return ctx.Value(callerKey{}).(*Caller) }

// refuse notes the error and returns it in the form that huma writes.
func (c *Caller) refuse(e *api.Error) refusal { return refusal{e, c.Failed(e)} }

// New registers the operations.
func New(o Options) *Service {
	s := &Service{Options: o}
	// Both are package variables of huma; only this package uses it.
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return refusal{refused(status, msg, errs), status}
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return callerOf(ctx.Context()).refuse(refused(status, msg, errs))
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
	s.handler, s.api = mux, a.OpenAPI()
	return s
}

// OpenAPI describes the operations.
func (s *Service) OpenAPI() *huma.OpenAPI { return s.api }

// Fields are all names that a body of an operation may hold, by its route template.
func Fields(template string) []string {
	if strings.HasPrefix(template, "/api/admin/backends") {
		return backendFields
	}
	return keyFields
}

// CheckParam refuses the parameter of a path that cannot name anything: param is that of the route template, "" if there is none.
func CheckParam(template, param string) error {
	switch {
	case param == "":
	case strings.HasPrefix(template, "/api/admin/backends"):
		if !api.ValidBackendName(param) {
			return api.Errorf(api.CodeNotFound, "there is no backend of this name: GET /api/admin/backends lists them")
		}
	case template == "/api/admin/explain/{request_id}":
		if !auth.ValidRequestID(param) {
			return errUnknownRequest
		}
	case !auth.ValidPreview(param):
		return api.Errorf(api.CodeNotFound, "there is no key with this key_preview (oas_ and ten characters)")
	}
	return nil
}

// Answer answers r, whose path and body have been checked, for c.
func (s *Service) Answer(w http.ResponseWriter, r *http.Request, c *Caller) {
	s.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
}

// refusal is an api.Error as huma writes one, with the status and the body that all other failures have.
type refusal struct {
	e      *api.Error
	status int
}

func (r refusal) Error() string                { return r.e.Error() }
func (r refusal) GetStatus() int               { return r.status }
func (r refusal) ContentType(string) string    { return "application/json" }
func (r refusal) MarshalJSON() ([]byte, error) { return dialect.NativeError(r.e.Message), nil }
func (r refusal) Schema(huma.Registry) *huma.Schema {
	text := &huma.Schema{Type: huma.TypeString}
	return &huma.Schema{Type: huma.TypeObject, Required: []string{"error", "detail"}, Properties: map[string]*huma.Schema{"error": text, "detail": text}}
}

// refused is the error for what huma found. It names the place of a value, never the value.
func refused(status int, msg string, errs []error) *api.Error {
	var own *api.Error
	for _, err := range errs {
		if errors.As(err, &own) {
			return own
		}
	}
	if status >= 500 {
		return api.AsError(errors.Join(append(errs, errors.New(msg))...))
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
	return api.Errorf(api.CodeBadRequest, "%s", msg)
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
		return nil, callerOf(ctx).refuse(api.AsError(err))
	})
}
