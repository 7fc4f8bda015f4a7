// Package server is the HTTP surface: the route table, what stands before each route, and the answers. inference.go reads
// as the story of one request.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"ollama-api-service/internal/admin"
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
	"ollama-api-service/web"
)

const (
	headerTimeout = 10 * time.Second // a client that drips its header is cut
	keepAlive     = 2 * time.Minute
	maxHeader     = 32 << 10
	lastWords     = 2 * time.Second // for the error records of streams that are cut at a stop
	writeProgress = 30 * time.Second
	newcomers     = time.Second // for the first request of a connection that was accepted just before a stop
)

// Options are the packages and the settings that the server uses. Where a field does not say what its zero value means, it must be set.
type Options struct {
	Version string
	Log     *slog.Logger
	Random  io.Reader // of new keys
	Store   *store.Store
	Auth    *auth.Authenticator
	Secret  auth.Secret
	Limits  *limit.Memory
	Books   *books.Books
	Fleet   *backend.Fleet
	Queue   sched.Options // its Load is the server's own
	Live    Live          // at start; Change replaces it

	Upstream
	Bounds
	Access
	Reports
}

// Upstream is how the server uses the Ollama servers.
type Upstream struct {
	// Means are what a server is reached with unless an admin says otherwise: OLLAMA_AUTH_HEADER, OLLAMA_CA and OLLAMA_CLIENT_CERT.
	// May be empty.
	Means dial.Means
	// Static are the names of the servers that the settings name, and Refuses is why an address cannot be a server's. May be nil.
	Static  map[string]bool
	Refuses func(*url.URL) error

	FirstByte  time.Duration // longest wait for an answer
	Idle       time.Duration // longest silence within one
	CountGrace time.Duration // how long an answer is read on after its client has left, so that its tokens are counted; 0 is not at all
	// TraceUpstream tells the Ollama server, or what is in front of it, about the trace of a request.
	TraceUpstream bool
}

// Bounds are what requests may take.
type Bounds struct {
	MaxBody        int64 // bytes of one body
	BodyMemory     int64 // bytes of the large bodies of all requests together
	MaxRequestTime time.Duration
	Heartbeat      time.Duration // between heartbeats in a silent stream of events; 0 is none
	PerAddress     int           // concurrent connections of one address; 0 is no bound
	StopDelay      time.Duration // how long connections are accepted after /readyz has begun to answer 503
}

// Access is how clients reach the server. The zero value is plain HTTP at the root.
type Access struct {
	BasePath      string // under which the service is published, like /ollama
	ProxyProtocol bool   // each connection begins with a header of a trusted proxy
	Throttle      *auth.Throttle
	MetricsOpen   bool          // /metrics needs no key from this machine
	TLS           *tls.Config   // nil is plain HTTP, without HTTP/2
	HSTS          time.Duration // how long browsers use only HTTPS; 0, or without TLS, sends no header
	// Expiry is when the certificate of each name ends; nil without TLS.
	Expiry func() map[string]time.Time
}

// Reports is what the server says about itself and its requests. The zero value says least.
type Reports struct {
	Tracer     trace.Tracer      // makes the spans of requests; nil traces nothing
	LogAddress api.AddressDetail // how much of a client's address the log and traces show
	// LogLinesLost is the number of lines of the log that were lost, because its reader did not take them; nil is none.
	LogLinesLost func() int64
	// LastBackup is when the newest good scheduled backup was made; zero is never. BackupEvery is how often one is due; 0 is never.
	LastBackup  func() time.Time
	BackupEvery time.Duration
}

// Server answers every request. New makes one.
type Server struct {
	Options
	Sched           *sched.Scheduler
	live            atomic.Pointer[snapshot]
	routes          *table
	metrics         *metrics
	recent          explain.Recent
	pools           pools
	unlisted        unlisted
	refusals        *refusals
	badKeys         *badKeys
	badForwardedFor badForwardedFor
	admin           *admin.Service
	site            func() (*web.Site, error) // made by whoever asks first: compressing it would double the time to start
	openAPI         func() (*web.File, error) // built at its first use, too
	started         time.Time
	ready           atomic.Bool
	// writeProgress is how long a client may take nothing of its answer.
	writeProgress time.Duration
	// leaveTime is the largest time between the leaving of a client and the end of its exchange with Ollama.
	leaveTime time.Duration
	requests  sync.WaitGroup
	bodies    bodies
	uploads   bodies          // counted, not measured
	parsing   turns           // of large bodies
	hsts      []string        // the header, or nil
	stopping  context.Context // ends when Serve is told to stop
	stop      context.CancelFunc
	readOn    atomic.Int64 // answers whose clients have left
}

// New builds the route table and the management API on it.
func New(o Options) *Server {
	s := &Server{Options: o, started: time.Now(), writeProgress: writeProgress, leaveTime: leaveTime}
	s.Change(o.Live)
	s.Options.Live = Live{} // what it is now is in s.live only
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.routes = newTable(s.routeList())
	s.bodies.most, s.uploads.most, s.parsing.places = o.BodyMemory, mostUploads, places()
	if o.HSTS > 0 && o.TLS != nil {
		s.hsts = []string{"max-age=" + strconv.FormatInt(int64(o.HSTS.Seconds()), 10)}
	}
	o.Queue.Load = s.preload
	s.Sched = sched.New(o.Fleet, o.Queue)
	s.metrics = newMetrics(s)
	s.refusals = newRefusals(s)
	s.badKeys = &badKeys{tell: s.tellBadKeys, by: make(map[netip.Prefix]*badKeyLines)}
	o.Auth.SpareStore(o.Throttle)
	s.pools.fleet = o.Fleet
	o.Fleet.OnChange(s.pools.follow)
	for _, b := range o.Fleet.All() {
		s.join(b)
	}
	s.admin = admin.New(admin.Options{
		Version: o.Version, Log: o.Log, Store: o.Store, Auth: o.Auth, Secret: o.Secret, Random: o.Random, Limits: o.Limits, Books: o.Books,
		Fleet: o.Fleet, Sched: s.Sched, Recent: &s.recent, Means: o.Means, Static: o.Static, Refuses: o.Refuses,
		Connect: s.join, Renew: s.pools.renew, Disconnect: s.pools.close, From: s.from,
	})
	s.site = sync.OnceValues(web.Open)
	s.openAPI = sync.OnceValues(func() (*web.File, error) { return s.describe(s.admin.OpenAPI()) })
	s.ready.Store(true)
	return s
}

// Serve answers on l until ctx ends and StopDelay has passed, then lets requests finish for grace and ends what is left with an error
// record. It returns when no request runs any more.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	return s.ServeAll(ctx, []net.Listener{l}, grace)
}

// ServeAll is Serve on several listeners.
func (s *Server) ServeAll(ctx context.Context, all []net.Listener, grace time.Duration) error {
	base, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var news news
	h := &http.Server{
		Handler:           reached(s),
		TLSConfig:         s.TLS,
		HTTP2:             http2Limits,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       keepAlive,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(s.refusals, "", 0),
		ConnContext:       withArrival,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnState: func(c net.Conn, state http.ConnState) {
			news.follow(c, state)
			s.refusals.follow(c, state)
		},
		// OPTIONS * is answered by the route table like everything else.
		DisableGeneralOptionsHandler: true,
	}
	if s.TLS != nil {
		if err := serveHTTP2(h); err != nil {
			return err
		}
	}
	defer s.refusals.close()
	defer s.badKeys.close()
	failed := make(chan error, len(all))
	for _, l := range all {
		if s.ProxyProtocol {
			l = newProxyProtocol(l, s.trusted, s.refusals)
		}
		l = limitAddresses(l, s.PerAddress, s.trusted, s.refusals)
		go func() {
			if s.TLS == nil {
				failed <- h.Serve(l)
				return
			}
			failed <- h.ServeTLS(l, "", "")
		}()
	}
	serving := len(all)
	var broken error // of a listener: the others stop in the usual way too
	select {
	case broken = <-failed:
		serving--
	case <-ctx.Done():
	}
	s.ready.Store(false)
	if s.StopDelay > 0 && broken == nil {
		s.Log.Info("stopping: connections are accepted for a while yet", "delay", s.StopDelay.String())
		select {
		case broken = <-failed:
			serving--
		case <-time.After(s.StopDelay):
		}
	}
	s.stop()
	s.Log.Info("stopping", "grace", grace.String())
	for _, l := range all {
		_ = l.Close()
	}
	for range serving {
		<-failed // each has begun to serve what it had accepted
	}
	news.settle(newcomers)
	drain, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := h.Shutdown(drain)
	if err != nil {
		// The cause becomes the error record of the streams that are cut.
		stop(api.Errorf(api.CodeStopping, "the gateway is stopping: try again in a moment"))
		// Who does not read cannot be told, and must not keep the process: closing the connections ends the rest.
		time.AfterFunc(lastWords, func() { _ = h.Close() })
		err = nil
	}
	s.requests.Wait()
	s.pools.closeAll()
	return errors.Join(broken, err)
}

// ServeHTTP answers under the settings of this moment.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.live.Load().handler.ServeHTTP(w, r)
}

// answer finds the route and the key, and lets the route answer. Requests of unknown routes or without a valid key end here.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, live *Live) {
	s.requests.Add(1)
	defer s.requests.Done()
	s.metrics.open.Inc()
	defer s.metrics.open.Dec()
	x := s.newExchange(w, r, live)
	defer s.finish(x)
	if err := s.dispatch(x); err != nil {
		x.fail(err)
	}
}

func (s *Server) dispatch(x *exchange) error {
	x.boundConnection()
	if err := x.cleanPath(); err != nil {
		return err
	}
	if err := x.refusePreflight(); err != nil {
		return err
	}
	if err := x.checkHead(); err != nil {
		return err
	}
	if err := s.routes.find(x); err != nil {
		return err
	}
	if x.pathKey != "" && !x.route.ollama() {
		return api.Errorf(api.CodeNotFound, "no such path: a key in the path is for Ollama's and the /v1 routes alone")
	}
	if err := s.identify(x); err != nil {
		return err
	}
	s.traceRequest(x)
	return x.route.serve(x)
}

// identify finds the key and whether it may enter the route.
func (s *Server) identify(x *exchange) error {
	if x.route.access == anyone && !x.route.optional || x.route.access == adminsOrHere && s.MetricsOpen && x.fromHere() {
		return nil
	}
	key, err := s.keyOf(x)
	switch {
	case err == nil:
		x.key = key
	case x.route.access == anyone:
		if !errors.Is(err, auth.ErrNoCredential) {
			s.Books.Refuse(x.who(), api.AsError(err).Code)
		}
		return nil // without a good key it answers all the same, only less
	default:
		return err
	}
	switch {
	case x.route.access == anyone:
		return nil
	case x.route.access.admin() && x.key.Role != api.RoleAdmin && x.route.purpose == management:
		// "ollama run" pulls a model that it is not shown: its user must learn here which models there are.
		return api.Errorf(api.CodeForbidden, "this needs an admin key: ask the operator of this service; the models that this key may use are in \"ollama list\" (GET /api/tags)")
	case x.route.access.admin() && x.key.Role != api.RoleAdmin:
		return api.Errorf(api.CodeForbidden, "this needs an admin key: ask the operator of this service")
	}
	if x.key.OldSecretUntil != nil {
		x.Header().Set("Deprecation", "true")
		x.Header().Set("X-Key-Expires", x.key.OldSecretUntil.UTC().Format(time.RFC3339))
	}
	return nil
}

// guessLength is what a text must have to count as a guess where a good key was sent with it: ADMIN_API_KEY is no shorter, and the
// placeholders of clients ("ollama", "none", "sk-no-key-required") are. In bytes.
const guessLength = 24

// keyOf is the key of the request. Texts that are no keys are counted for their address, also those that stand next to a good key.
func (s *Server) keyOf(x *exchange) (*api.Key, error) {
	text, passedOver, err := s.Auth.Credential(x.r.Header, x.pathKey)
	var key *api.Key
	if err == nil {
		key, err = s.Auth.Identify(x.r.Context(), text, x.addr, x.forwarded)
	}
	if errors.Is(err, auth.ErrNoCredential) {
		x.repeats = s.Throttle.Spent(x.addr, "")
		return nil, err
	}
	var wait time.Duration
	over := false
	failed := func(text string) {
		x.repeats = x.repeats || s.Throttle.Spent(x.addr, text)
		if w, o := s.Throttle.Failed(x.addr, text); o {
			wait, over = w, true
		}
	}
	if err != nil && api.AsError(err).Code == api.CodeUnauthorized {
		failed(text)
	}
	for _, text := range passedOver {
		if len(text) >= guessLength {
			failed(text)
		}
	}
	if over {
		return nil, &api.Error{
			Code: api.CodeThrottled, RetryAfter: wait, NoRetry: true, Err: err,
			Message: "too many requests with a bad API key came from your address: check the key, and try again in a minute",
		}
	}
	return key, err
}

// finish writes the log line and keeps a panic from taking the process along.
func (s *Server) finish(x *exchange) {
	p := recover()
	x.releaseBody()
	s.recent.End(x.history)
	defer x.lastWrite()
	switch p {
	case nil:
		s.logRequest(x)
	case http.ErrAbortHandler:
		s.logRequest(x)
		panic(p) // the connection must break: net/http does it on this value
	default:
		s.Log.Error("panic", "request_id", x.id, "route", x.template(), "panic", p, "stack", string(debug.Stack()))
		if !x.started() {
			x.fail(api.Errorf(api.CodeInternal, "something went wrong inside the gateway; the log has the details under this request id"))
			s.logRequest(x)
			return
		}
		s.logRequest(x)
		panic(http.ErrAbortHandler)
	}
}

// logRequest writes the one line of a request. It carries the route template, never the path: a path may hold a key.
func (s *Server) logRequest(x *exchange) {
	s.metrics.answered(x)
	x.trace.end(x)
	level := slog.LevelInfo
	if x.err != nil {
		switch x.err.Code {
		case api.CodeUnauthorized, api.CodeThrottled, api.CodeForbidden,
			api.CodeRateLimited, api.CodeConcurrency, api.CodeQueueFull, api.CodeQueueTimeout:
			level = slog.LevelWarn
			s.Books.Refuse(x.who(), x.err.Code)
		case api.CodeInternal, api.CodeUnavailable, api.CodeNoBackend, api.CodeUpstreamError, api.CodeUpstreamTimeout:
			level = slog.LevelError
		case api.CodeBadRequest:
			s.Books.Refuse(x.who(), x.err.Code)
		}
	} else if x.route.watches() {
		level = slog.LevelDebug
	} else if x.key != nil && x.route != nil && x.route.purpose == metadata {
		s.Books.Tally(x.key.Preview, "metadata")
	}
	if !s.Log.Enabled(x.r.Context(), level) {
		return
	}
	message, leftOut := "request", 0
	if x.err != nil {
		message = logMessage(x.err.Code)
	}
	if message == badKeyMessage && x.repeats {
		var write bool
		if leftOut, write = s.badKeys.note(x.addr); !write {
			return
		}
	}
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs, slog.String("request_id", x.id), slog.String("method", logMethod(x.r.Method)), slog.String("route", x.template()),
		slog.Int("status", x.loggedStatus()))
	if client := s.LogAddress.Show(x.addr); client != "" {
		attrs = append(attrs, slog.String("client", client))
	}
	if x.key != nil {
		attrs = append(attrs, slog.String("key", x.key.Preview))
	}
	attrs = append(attrs, x.attrs()...)
	if id := x.trace.id(); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", string(x.err.Code)))
		if x.err.Err != nil {
			attrs = append(attrs, slog.String("cause", s.withoutClient(x.err.Err.Error(), x.addr)))
		}
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("left_out", leftOut))
	}
	s.Log.LogAttrs(x.r.Context(), level, message, attrs...)
}

// logMessage names what happened, so that a log can be searched for it.
func logMessage(code api.Code) string {
	switch code {
	case api.CodeUnauthorized, api.CodeThrottled:
		return badKeyMessage
	case api.CodeRateLimited, api.CodeConcurrency:
		return "limit refused"
	}
	return "request failed"
}

// logMethod keeps a method that a client made up out of the log.
func logMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// familyOf is the dialect of a request's errors, also where no route is found for it. Where Anthropic's clients share a path
// with OpenAI's, their header tells them apart.
func familyOf(path string, h http.Header) dialect.Family {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "/")
	switch {
	case !strings.HasPrefix(path, "/v1/"):
		return dialect.Native
	case first == "messages", first == "models" && h["Anthropic-Version"] != nil:
		return dialect.Anthropic
	case first == "responses":
		return dialect.Responses
	}
	return dialect.OpenAI
}
