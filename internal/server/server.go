// Package server is the HTTP surface: the route table, what stands before each route, and the answers. inference.go reads
// as the story of one request, and modelchanges.go as that of a change of models.
package server

import (
	"context"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/explain"
	"ollama-api-service/internal/sched"
	"ollama-api-service/web"
)

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
	requests  underWay
	bodies    bodies
	uploads   bodies          // counted, not measured
	parsing   turns           // of large bodies
	hsts      []string        // the header, or nil
	stopping  context.Context // ends when Serve is told to stop
	stop      context.CancelFunc
	readOn    atomic.Int64 // answers whose clients have left
	taken     *takenOver
}

// New builds the route table and the management API on it.
func New(o Options) *Server {
	s := &Server{Options: o, started: time.Now(), writeProgress: writeProgress, leaveTime: leaveTime, taken: newTakenOver()}
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
		Parts: o.Parts, Sched: s.Sched, Recent: &s.recent,
		Connect: s.join, Renew: s.pools.renew, Disconnect: s.pools.close, From: s.from,
	})
	s.site = sync.OnceValues(web.Open)
	s.openAPI = sync.OnceValues(func() (*web.File, error) { return s.describe(s.admin.OpenAPI()) })
	s.ready.Store(true)
	return s
}

// ServeHTTP answers under the settings of this moment.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.live.Load().handler.ServeHTTP(w, r)
}

// answer finds the route and the key, and lets the route answer. Requests of unknown routes or without a valid key end here.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, live *Live) {
	s.requests.begin()
	defer s.requests.end()
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

// finish ends a request, and keeps a panic from taking the process along.
func (s *Server) finish(x *exchange) {
	p := recover()
	x.releaseBody()
	defer x.lastWrite()
	defer func() { x.returnConnection(p == nil) }()
	if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // p is a panic's value, which net/http compares in this way too
		s.Log.Error("panic", "request_id", x.id, "route", x.template(), "panic", p, "stack", string(debug.Stack()))
		p = http.ErrAbortHandler
		if !x.started() {
			x.fail(api.Errorf(api.CodeInternal, "something went wrong inside the gateway; the log has the details under this request id"))
			p = nil
		}
	}
	x.ended()
	if p != nil {
		panic(p) // the connection must break: net/http does it on this value
	}
}
