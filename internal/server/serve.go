package server

import (
	"context"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"ollama-api-service/internal/api"
)

const (
	headerTimeout = 10 * time.Second // a client that drips its header is cut
	keepAlive     = 2 * time.Minute
	maxHeader     = 32 << 10
	lastWords     = 2 * time.Second // for the error records of streams that are cut at a stop
	writeProgress = 30 * time.Second
	newcomers     = time.Second // for the first request of a connection that was accepted just before a stop
)

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
	h, err := s.httpServer(base, &news)
	if err != nil {
		return err
	}
	defer s.refusals.close()
	defer s.badKeys.close()
	failed := s.accept(h, all)
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
	if h.Shutdown(drain) != nil || s.awaitRequests(drain) != nil {
		// The cause becomes the error record of the streams that are cut.
		stop(api.Errorf(api.CodeStopping, "the gateway is stopping: try again in a moment"))
		// Who does not read cannot be told, and must not keep the process: closing the connections ends the rest.
		time.AfterFunc(lastWords, func() {
			_ = h.Close()
			s.taken.closeStreams()
		})
	}
	<-s.requests.none()
	s.pools.closeAll()
	return broken
}

// httpServer returns the server of net/http that answers the connections. The contexts of its requests come from base.
func (s *Server) httpServer(base context.Context, news *news) (*http.Server, error) {
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
	if s.TLS == nil {
		return h, nil
	}
	return h, serveHTTP2(h)
}

// accept serves the connections of each listener, and sends the error with which each ends.
func (s *Server) accept(h *http.Server, all []net.Listener) <-chan error {
	if s.TLS == nil {
		go func() { _ = h.Serve(returning{s.taken, all[0]}) }() // Shutdown ends it
	}
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
	return failed
}

// underWay counts requests. Unlike a sync.WaitGroup, it may be waited for while requests begin.
type underWay struct {
	mu      sync.Mutex
	n       int
	waiting []chan struct{}
}

func (u *underWay) begin() {
	u.mu.Lock()
	u.n++
	u.mu.Unlock()
}

func (u *underWay) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n--; u.n == 0 {
		for _, none := range u.waiting {
			close(none)
		}
		u.waiting = nil
	}
}

// none returns a channel that is closed once no request is under way.
func (u *underWay) none() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	none := make(chan struct{})
	if u.n == 0 {
		close(none)
	} else {
		u.waiting = append(u.waiting, none)
	}
	return none
}
