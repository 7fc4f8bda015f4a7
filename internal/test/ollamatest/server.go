// Package ollamatest is a scriptable fake Ollama on a real socket, for tests. Without a script, it answers like a real Ollama 0.24.0 that
// serves the model "tiny": it sends the recordings in testdata/ollama-0.24.0, byte for byte. A script replaces the answers for one method
// and path, can send them chunk by chunk, and can break them on purpose.
package ollamatest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience limits every wait for an event: a test that waits longer fails.
const patience = 15 * time.Second

// Server is one fake Ollama. Create it with Start.
type Server struct {
	URL string // http://127.0.0.1:PORT
	// Certificate is the certificate of a server from StartTLS; otherwise nil.
	Certificate *x509.Certificate

	tb       testing.TB
	listener net.Listener
	stop     chan struct{}
	running  sync.WaitGroup

	mu       sync.Mutex
	scripts  map[string]*script
	models   []string
	requests []*Request
	arrived  chan struct{} // closed and replaced at each request
	conns    map[net.Conn]bool
	accepted int
}

type script struct {
	answer  func(*Request) Answer
	answers []Answer
}

// Request is one complete request as it was received.
type Request struct {
	Method, Path, Query string
	RequestURI          string // the request target as received
	Host                string
	Header              http.Header
	TransferEncoding    []string
	ContentLength       int64 // -1 if unspecified
	Body                []byte
	Conn                int           // number of the connection, from 1; an equal number means that it was reused
	Closed              chan struct{} // closed when the peer has closed the connection
	Answered            chan struct{} // closed when the whole answer has been written

	tb testing.TB
}

// Start serves on a free port of 127.0.0.1 until the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return start(tb, l, "http://")
}

// StartOn serves on a listener of the test.
func StartOn(tb testing.TB, l net.Listener) *Server { return start(tb, l, "http://") }

// StartTLS is Start with TLS. Clients must trust Server.Certificate.
func StartTLS(tb testing.TB) *Server {
	tb.Helper()
	donor := httptest.NewTLSServer(nil)
	config := &tls.Config{Certificates: donor.TLS.Certificates}
	donor.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		tb.Fatal(err)
	}
	s := start(tb, l, "https://")
	s.Certificate = donor.Certificate()
	return s
}

func start(tb testing.TB, l net.Listener, scheme string) *Server {
	s := &Server{
		URL: scheme + l.Addr().String(), tb: tb, listener: l, stop: make(chan struct{}),
		scripts: map[string]*script{}, models: []string{"tiny:latest"}, arrived: make(chan struct{}), conns: map[net.Conn]bool{},
	}
	s.running.Go(s.accept)
	tb.Cleanup(s.Close)
	return s
}

// Close closes every connection and waits until the server has stopped. Start calls it at the end of the test.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.mu.Unlock()
	s.listener.Close()
	s.CloseConnections()
	s.running.Wait()
}

// CloseConnections closes every open connection, as a restarted server does, so that pooled connections become stale.
func (s *Server) CloseConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Connections returns the number of connections accepted so far.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Models replaces the installed models, by default only "tiny:latest". Other models are unknown.
func (s *Server) Models(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.models = slices.Clone(names)
}

// Script replaces the answers for one method and path. They are sent one after the other, and the last one forever. Without answers, it
// restores the recorded behaviour.
func (s *Server) Script(method, path string, answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(answers) == 0 {
		delete(s.scripts, method+" "+path)
		return
	}
	s.scripts[method+" "+path] = &script{answers: answers}
}

// Handle is Script with a function that returns the answer for each request. The function may be called concurrently.
func (s *Server) Handle(method, path string, answer func(*Request) Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[method+" "+path] = &script{answer: answer}
}

// Requests returns all requests so far, in the order in which they were read.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Forget returns the requests so far and removes them, for tests that send more than fits into memory.
func (s *Server) Forget() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.requests
	s.requests = nil
	return seen
}

// RequestsTo returns the requests for one method and path so far.
func (s *Server) RequestsTo(method, path string) []*Request {
	return slices.DeleteFunc(s.Requests(), func(r *Request) bool { return r.Method != method || r.Path != path })
}

// WaitRequest waits for the n-th request, counted from 1. The test fails if it does not arrive.
func (s *Server) WaitRequest(n int) *Request {
	s.tb.Helper()
	return s.wait(n, s.Requests)
}

// WaitRequestTo waits for the n-th request for one method and path, counted from 1.
func (s *Server) WaitRequestTo(n int, method, path string) *Request {
	s.tb.Helper()
	return s.wait(n, func() []*Request { return s.RequestsTo(method, path) })
}

func (s *Server) wait(n int, seen func() []*Request) *Request {
	s.tb.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		arrived := s.arrived
		s.mu.Unlock()
		if rs := seen(); len(rs) >= n {
			return rs[n-1]
		}
		select {
		case <-arrived:
		case <-deadline:
			s.tb.Fatalf("ollamatest: request %d did not arrive within %v; %d arrived", n, patience, len(seen()))
			return nil
		}
	}
}

// WaitClosed waits until the peer has closed the connection of r. The test fails if it does not.
func (r *Request) WaitClosed() {
	r.tb.Helper()
	r.await(r.Closed, "was not closed by the peer")
}

// WaitAnswered waits until the whole answer to r has been written.
func (r *Request) WaitAnswered() {
	r.tb.Helper()
	r.await(r.Answered, "was not answered")
}

func (r *Request) await(event chan struct{}, complaint string) {
	r.tb.Helper()
	select {
	case <-event:
	case <-time.After(patience):
		r.tb.Fatalf("ollamatest: %s %s %s within %v", r.Method, r.Path, complaint, patience)
	}
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		select {
		case <-s.stop:
			s.mu.Unlock()
			c.Close()
			return
		default:
		}
		s.accepted++
		number := s.accepted
		s.conns[c] = true
		s.running.Go(func() { s.serve(c, number) })
		s.mu.Unlock()
	}
}

// serve reads requests one after the other. While it writes an answer, it already waits for the next byte, because only a reader notices
// that the peer has gone.
func (s *Server) serve(c net.Conn, number int) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for {
		head, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		r := &Request{
			Method: head.Method, Path: head.URL.Path, Query: head.URL.RawQuery, RequestURI: head.RequestURI, Host: head.Host,
			Header: head.Header, TransferEncoding: head.TransferEncoding, ContentLength: head.ContentLength,
			Conn: number, Closed: make(chan struct{}), Answered: make(chan struct{}), tb: s.tb,
		}
		early, isEarly := s.early(r)
		if !isEarly {
			if r.Body, err = readBody(c, head); err != nil {
				return
			}
		}
		s.record(r)
		if !isEarly {
			early = s.answer(r)
		}
		more := make(chan bool, 1)
		s.running.Go(func() { more <- s.write(c, r, early) })
		if isEarly {
			// Read and discard the body only now: the answer did not wait for it.
			io.Copy(io.Discard, head.Body)
		}
		if _, err := in.Peek(1); err != nil {
			close(r.Closed)
			c.Close()
			<-more
			return
		}
		if !<-more {
			return
		}
	}
}

// readBody reads the whole body. It answers "Expect: 100-continue" first.
func readBody(c net.Conn, head *http.Request) ([]byte, error) {
	if head.Header.Get("Expect") == "100-continue" {
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	var b bytes.Buffer
	_, err := b.ReadFrom(head.Body)
	return b.Bytes(), err
}

func (s *Server) record(r *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	close(s.arrived)
	s.arrived = make(chan struct{})
}

// early returns the scripted answer if it is to be sent before the body is read.
func (s *Server) early(r *Request) (Answer, bool) {
	s.mu.Lock()
	sc := s.scripts[r.Method+" "+r.Path]
	early := sc != nil && len(sc.answers) > 0 && sc.answers[0].Early
	s.mu.Unlock()
	if !early {
		return Answer{}, false
	}
	return s.answer(r), true
}

// answer returns the next scripted answer, or the recorded one.
func (s *Server) answer(r *Request) Answer {
	s.mu.Lock()
	sc := s.scripts[r.Method+" "+r.Path]
	models := s.models
	var a Answer
	if sc != nil && sc.answer == nil {
		a = sc.answers[0]
		if len(sc.answers) > 1 {
			sc.answers = sc.answers[1:]
		}
	}
	s.mu.Unlock()
	switch {
	case sc == nil:
		return recorded(r, models)
	case sc.answer != nil:
		a = sc.answer(r)
	}
	return a.complete(r, models)
}
