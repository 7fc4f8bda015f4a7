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

// Parts are what the operations and the server have in common. All fields but Means and Refuses must be set.
type Parts struct {
	Version string
	Log     *slog.Logger
	Random  io.Reader // of new keys
	Store   *store.Store
	Auth    *auth.Authenticator
	Secret  auth.Secret
	Limits  *limit.Memory
	Books   *books.Books
	Fleet   *backend.Fleet

	// Means are what a server is reached with unless an admin says otherwise: OLLAMA_AUTH_HEADER, OLLAMA_CA and OLLAMA_CLIENT_CERT.
	Means dial.Means
	// Static are the names of the servers in the settings.
	Static map[string]bool
	// Refuses returns why an address cannot be a server's; nil accepts all.
	Refuses func(*url.URL) error
}

// Options are what the operations read and change. All fields must be set.
type Options struct {
	Parts
	Sched  *sched.Scheduler
	Recent *explain.Recent
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

// Request returns a copy of r that Answer answers for c.
func (c *Caller) Request(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

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
	s.operations(a)
	s.handler, s.api = mux, a.OpenAPI()
	return s
}

// operations registers all operations. keys, statistics and backends are the groups in which the documentation shows them.
func (s *Service) operations(a huma.API) {
	const keys, statistics, backends = "API keys (admin)", "Statistics", "Backends (admin)"
	operation(a, "create-key", "POST /api/keys", keys, "Create an API key", s.createKey)
	operation(a, "list-keys", "GET /api/keys", keys, "List all API keys", s.listKeys)
	operation(a, "get-key", "GET /api/keys/{key_preview}", keys, "Show one API key", s.showKey)
	operation(a, "change-key", "PATCH /api/keys/{key_preview}", keys, "Change an API key", s.changeKey)
	operation(a, "revoke-key", "DELETE /api/keys/{key_preview}", keys, "Revoke an API key", s.revokeKey)
	operation(a, "rotate-key", "POST /api/keys/{key_preview}/rotate", keys, "Give an API key a new secret", s.rotateKey)

	operation(a, "own-statistics", "GET /api/stats", statistics, "Your usage statistics", s.ownStatistics)
	operation(a, "all-statistics", "GET /api/admin/stats", statistics, "Usage statistics of all keys (admin)", s.allStatistics)

	const spans = " As long as single requests are kept (RETENTION_ROWS), the answer is exact to the millisecond. from is in the span, to is not. " +
		"In CSV, a text that a spreadsheet could run as a formula starts with an apostrophe."
	register(a, huma.Operation{
		OperationID: "usage", Method: "GET", Path: "/api/admin/usage", Summary: "Usage by key, model, endpoint, backend, outcome, hour, day, week or month (admin)",
		Description: "What booked requests used: all requests that named a model, and changes of models. Without from, the span starts 30 days before to, at the start of a day. Without to, it ends now." + spans +
			" For earlier times, only sums of hours and days are kept, for RETENTION_ROLLUPS. If the span cuts such an hour or day, it is extended to include all of it; from and to in the answer show the extended span.",
		Tags: []string{statistics}, Responses: tableResponse(usageExample, "day,requests,prompt_tokens,…\n2026-11-25T00:00:00Z,42,1234,…\n"),
	}, s.usage)
	register(a, huma.Operation{
		OperationID: "requests", Method: "GET", Path: "/api/admin/requests", Summary: "Booked requests one by one (admin)",
		Description: "Each booked request with its usage and its end, the newest first. Prompts and answers are never included. Follow next_cursor for more; requests that arrive in the meantime do not change the pages. " +
			"A request is listed when it has ended, at the time it was admitted." + spans,
		Tags: []string{statistics}, Responses: tableResponse(requestsExample, "id,client_request_id,at,key,key_name,model,…\n019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90,,2026-11-25T09:30:00Z,…\n"),
	}, s.listRequests)

	register(a, huma.Operation{
		OperationID: "audit", Method: "GET", Path: "/api/admin/audit", Summary: "Changes of keys and backends (admin)",
		Description: "Each change of a key or of an Ollama server: who made it, when and from where, newest first. Entries are kept forever and hold no secrets. " +
			"In CSV, an apostrophe precedes text that a spreadsheet could read as a formula, and detail is JSON.",
		Tags: []string{keys}, Responses: tableResponse(auditExample, "id,at,actor,actor_name,action,…\n12,2026-11-25T09:30:00Z,env-admin,,key.change,…\n"),
	}, s.audit)

	operation(a, "list-backends", "GET /api/admin/backends", backends, "List the Ollama servers", s.listBackends)
	operation(a, "add-backend", "POST /api/admin/backends", backends, "Add an Ollama server", s.addBackend)
	operation(a, "change-backend", "PATCH /api/admin/backends/{name}", backends, "Drain or change an Ollama server", s.changeBackend)
	operation(a, "remove-backend", "DELETE /api/admin/backends/{name}", backends, "Remove an Ollama server", s.removeBackend)

	operation(a, "queue", "GET /api/queue", statistics, "Waiting requests", s.queue)
	operation(a, "explain", "GET /api/admin/explain/{request_id}", statistics, "Why a request waited, which server it went to and what it cost (admin)", s.explain)
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

// Answer answers a request of Caller.Request. Its path and its body have been checked.
func (s *Service) Answer(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

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

// operation registers one typed operation: its id, its method and path, the group that it is shown in, and what it does.
func operation[I, O any](a huma.API, id, route, group, summary string, handle func(context.Context, *I) (*O, error)) {
	method, path, _ := strings.Cut(route, " ")
	register(a, huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{group}}, handle)
}

// register registers an operation with huma. Its errors are this service's own, and are noted for the log.
func register[I, O any](a huma.API, op huma.Operation, handle func(context.Context, *I) (*O, error)) {
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
