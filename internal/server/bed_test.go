package server_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/test/ollamatest"

	"ollama-api-service/internal/books"
	"ollama-api-service/internal/sched"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
)

const adminSecret = "an-admin-key-for-these-tests-alone"

// bed is the whole server on a real socket, a real database and a scripted Ollama.
type bed struct {
	t       testing.TB
	url     string
	ollama  *ollamatest.Server
	server  *server.Server
	others  []*ollamatest.Server // gpu2 and so on
	backend *backend.Backend
	fleet   *backend.Fleet
	sched   *sched.Scheduler
	store   *store.Store
	books   *books.Books
	auth    *auth.Authenticator
	secret  auth.Secret
	logs    *syncBuffer
	client  *http.Client
	stop    func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type setup struct {
	servers  int // 0 is 1
	slots    int
	maxQueue int
	maxWait  time.Duration                   // in the queue; 0 is a minute
	http2    bool                            // behind TLS, which is where clients speak it
	at       []string                        // addresses of servers to use in place of those that start makes
	listen   func(net.Listener) net.Listener // nil leaves it as it is
	watched  bool                            // probed as in service
	books    books.Options
	change   func(*server.Options)
}

func start(t testing.TB, with setup) *bed {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	b := &bed{t: t, ollama: ollamatest.Start(t), logs: &syncBuffer{}, secret: auth.NewSecret("a secret for tests that is long enough", "")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	b.store, err = store.Create(ctx, filepath.Join(dir, "test.db"))
	must(err)
	log := slog.New(slog.NewJSONHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.books, err = books.Open(ctx, dir, b.store, log, with.books)
	must(err)
	thousand := int64(1000)
	b.auth = auth.New(b.store, b.secret, []auth.Static{
		{Preview: "env-admin", Secret: adminSecret, Key: api.NewKey("ADMIN_API_KEY", api.RoleAdmin, &thousand)},
		{Preview: "demo-user", Secret: "demo-user-key-67890", Demo: true, Key: api.NewKey("demo", api.RoleUser, &thousand)},
	}, time.Now)
	base := parseURL(t, b.ollama.URL)
	slots, queue := max(with.slots, 0), max(with.maxQueue, 0)
	if slots == 0 {
		slots = 4
	}
	if queue == 0 {
		queue = 1024
	}
	wait := cmp.Or(with.maxWait, time.Minute)
	b.backend = backend.New("gpu1", base, slots, "", "")
	if len(with.at) > 0 {
		b.backend = backend.New("gpu1", parseURL(t, with.at[0]), slots, "", "")
	}
	b.fleet = backend.NewFleet(b.backend)
	for i, at := range with.at[min(1, len(with.at)):] {
		b.fleet.Add(backend.New(fmt.Sprint("gpu", i+2), parseURL(t, at), slots, "", ""))
	}
	for i := 2; i <= with.servers; i++ {
		other := ollamatest.Start(t)
		b.others = append(b.others, other)
		b.fleet.Add(backend.New(fmt.Sprint("gpu", i), parseURL(t, other.URL), slots, "", ""))
	}
	b.fleet.ProbeAll(ctx)
	o := server.Options{
		Parts: admin.Parts{
			Store: b.store, Auth: b.auth, Secret: b.secret, Random: rand.Reader, Limits: limit.NewMemory(time.Now),
			Fleet: b.fleet, Books: b.books, Log: log, Version: "test",
		},
		Queue:    sched.Options{MaxQueue: queue, MaxWait: wait},
		Live:     server.Live{DefaultLimits: map[api.Role]int64{api.RoleAdmin: 1000, api.RoleUser: 100}, StaticAdmin: true},
		Upstream: server.Upstream{FirstByte: 30 * time.Second, Idle: 30 * time.Second},
		Bounds:   server.Bounds{MaxBody: 1 << 20, BodyMemory: 64 << 20, MaxRequestTime: time.Minute},
		Access:   server.Access{Throttle: auth.NewThrottle(0, time.Now)},
	}
	if with.change != nil {
		with.change(&o)
	}
	var trust *tls.Config
	if with.http2 {
		o.TLS, trust = testTLS()
	}
	s := server.New(o)
	b.server, b.sched = s, s.Sched
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	if with.listen != nil {
		l = with.listen(l)
	}
	run, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	if with.watched {
		watching.Go(func() { b.fleet.Watch(run, func(*backend.Backend, backend.State) {}) })
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 600}
	b.url = "http://" + l.Addr().String()
	if with.http2 {
		transport.TLSClientConfig, transport.ForceAttemptHTTP2 = trust, true
		b.url = "https://" + l.Addr().String()
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(run, l, 2*time.Second) }()
	b.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	b.stop = sync.OnceFunc(func() {
		b.client.CloseIdleConnections()
		cancel()
		<-served
		watching.Wait()
		must(b.books.Close(context.Background()))
	})
	t.Cleanup(func() {
		b.stop()
		b.auth.Close()
		must(b.store.Close())
	})
	return b
}

func parseURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// testTLS is the TLS of a server on 127.0.0.1, and that of its clients.
func testTLS() (serve, trust *tls.Config) {
	donor := httptest.NewTLSServer(nil)
	defer donor.Close()
	roots := x509.NewCertPool()
	roots.AddCert(donor.Certificate())
	return &tls.Config{Certificates: donor.TLS.Certificates, MinVersion: tls.VersionTLS12}, &tls.Config{RootCAs: roots}
}

// fact is one of several that a test wants of a thing.
type fact struct {
	name      string
	got, want any
}

// compare fails the test for each fact that is not as wanted. Facts are compared as they print, so that 1 equals 1.0.
func compare(t testing.TB, about string, facts ...fact) {
	t.Helper()
	for _, f := range facts {
		if got, want := fmt.Sprint(f.got), fmt.Sprint(f.want); got != want {
			t.Errorf("%s is %s, want %s; %s", f.name, got, want, about)
		}
	}
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

func (r reply) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("not JSON (%d): %s", r.status, r.body)
	}
	return v
}

func (b *bed) do(method, path, key, body string) reply {
	b.t.Helper()
	return b.send(b.request(method, path, key, body))
}

func (b *bed) request(method, path, key, body string) *http.Request {
	b.t.Helper()
	req, err := http.NewRequest(method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if strings.HasPrefix(path, "/v1/") {
		req.Header.Set("X-Stainless-Lang", "js") // as OpenAI's SDKs: how a stream breaks depends on it
	}
	return req
}

func (b *bed) send(req *http.Request) reply {
	b.t.Helper()
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(text), err}
}

// key makes a key over HTTP and returns its secret and preview.
func (b *bed) key(fields string) (secret, preview string) {
	b.t.Helper()
	r := b.do("POST", "/api/keys", adminSecret, fields)
	if r.status != 200 && r.status != 201 {
		b.t.Fatalf("creating a key: %d %s", r.status, r.body)
	}
	v := r.json(b.t)
	return v["api_key"].(string), v["key_preview"].(string)
}

func (b *bed) user() string {
	b.t.Helper()
	secret, _ := b.key(`{"name":"user","role":"user"}`)
	return secret
}

// stats is /api/stats of a key: what has ended before is in it.
func (b *bed) stats(key string) map[string]any {
	b.t.Helper()
	return b.do("GET", "/api/stats", key, "").json(b.t)
}

// mint makes a key text that no store knows yet.
func (b *bed) mint() (secret, preview string) {
	b.t.Helper()
	secret, preview, err := auth.Mint(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	return secret, preview
}

// until waits for what must become true.
func until(t testing.TB, what string, within time.Duration, is func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after %v", what, within)
		}
	}
}
