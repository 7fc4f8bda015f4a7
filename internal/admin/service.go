// Package admin has the typed operations of the service's own API: keys, statistics, usage, backends, the queue, explanations and
// the audit trail. The route table of package server decides which keys may call them.
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

// Options are what the operations read and change. All fields but Refuses and Means are required.
type Options struct {
	Version string
	Log     *slog.Logger
	Store   *store.Store
	Auth    *auth.Authenticator
	Secret  auth.Secret
	Random  io.Reader // for new keys
	Limits  *limit.Memory
	Books   *books.Books
	Fleet   *backend.Fleet
	Sched   *sched.Scheduler
	Recent  *explain.Recent

	Means   dial.Means           // how to reach a server, unless an admin says otherwise
	Static  map[string]bool      // names of the servers in the settings
	Refuses func(*url.URL) error // why an address cannot be a server's; nil accepts all
	// Connect prepares the service for requests to a server, Renew makes it use new connections, and Disconnect closes its
	// connections.
	Connect, Renew, Disconnect func(*backend.Backend)
	// From returns the address of a change in the form that the log may have.
	From func(api.Change) string
}

// Service answers the operations. Call New to make one.
type Service struct {
	Options
	handler http.Handler
	api     *huma.OpenAPI
}

// Caller is the caller of an operation: its key, and the settings that the operation needs.
type Caller struct {
	Key           *api.Key
	Addr          string // as in the audit trail
	CSV           bool   // prefers CSV to JSON
	DefaultLimits map[api.Role]int64
	StaticAdmin   bool // an admin key exists outside the store
	// Failed notes an error for the log and the header of the answer, and returns its HTTP status.
	Failed func(*api.Error) int
}

type callerKey struct{}

func callerOf(ctx context.Context) *Caller { return ctx.Value(callerKey{}).(*Caller) }

// refuse notes the error and returns it in the form that huma writes.
func (c *Caller) refuse(e *api.Error) refusal { return refusal{e, c.Failed(e)} }

// New returns a service with all operations registered.
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

// OpenAPI returns the description of the operations.
func (s *Service) OpenAPI() *huma.OpenAPI { return s.api }

// Fields returns the names that a body of an operation may have, by its route template.
func Fields(template string) []string {
	if strings.HasPrefix(template, "/api/admin/backends") {
		return backendFields
	}
	return keyFields
}

// CheckParam returns an error if the path parameter cannot name anything. param is the value for the route template, or "" if there
// is none.
func CheckParam(template, param string) error {
	switch {
	case param == "":
	case strings.HasPrefix(template, "/api/admin/backends"):
		if !api.ValidBackendName(param) {
			return api.Errorf(api.CodeNotFound, "there is no backend with this name: GET /api/admin/backends lists them")
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

// Answer answers r for c. The path and the body of r have been checked.
func (s *Service) Answer(w http.ResponseWriter, r *http.Request, c *Caller) {
	s.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
}

// refusal is an api.Error in the form that huma writes, with the status and the body of all other failures.
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
	return &huma.Schema{
		Type: huma.TypeObject, Required: []string{"error", "detail"},
		Properties: map[string]*huma.Schema{"error": text, "detail": text},
	}
}

// refused returns the error for what huma found. It names the place of a value, never the value.
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
		msg = "a field of the body has a value of the wrong type or size" // the message of encoding/json repeats the value
	}
	return api.Errorf(api.CodeBadRequest, "%s", msg)
}

// changeWait is how long a change waits for a database that another process has locked.
const changeWait = 5 * time.Second

// operation registers one typed operation. Its errors are this service's own, and are noted for the log.
func operation[I, O any](a huma.API, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
	op.Errors = append(op.Errors, 400, 401, 403)
	// The body has been read already. huma's own deadline of 5 s would stay on the connection. After it, net/http treats every
	// request on that connection, current or later, as if its client had left.
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
