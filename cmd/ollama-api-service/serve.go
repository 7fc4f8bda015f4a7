package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"ollama-api-service/internal/admin"
	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/backup"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/clock"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/sched"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
)

const (
	changePoll   = 250 * time.Millisecond // how often changes by other processes are checked
	drainTimeout = 15 * time.Second       // how long the last rows may take to reach the database
)

// service is the running gateway: its parts, in the order in which they are opened.
type service struct {
	cfg       *config.Config
	log       *slog.Logger
	lines     *lineWriter
	systemd   *supervisor
	wait      *patience
	listeners []net.Listener
	secure    encryption
	store     *store.Store
	secret    auth.Secret
	books     *books.Books
	running   func() time.Time
	limits    *limit.Memory
	keys      *auth.Authenticator
	traces    traceSink
	copies    *backup.Schedule
	gateway   *server.Server

	started bool
	closers []func() error // run in reverse order
}

// serve runs the gateway until ctx ends.
func serve(ctx context.Context, cfg *config.Config, hangup <-chan os.Signal, stdout, stderr io.Writer) (err error) {
	s := &service{cfg: cfg, systemd: supervise(systemd)}
	defer s.systemd.close()
	s.log, s.lines = newLogger(cfg, stdout)
	defer s.lines.close()
	slog.SetDefault(s.log) // libraries log through it too; their default logger could block on standard error
	defer func() {
		if ctx.Err() != nil && !s.started && err != nil {
			s.log.Info("stopped during the start", "cause", sentence(err))
			err = nil
		}
		if err != nil {
			s.log.Error("not serving", "cause", sentence(err))
		}
	}()
	if s.listeners, err = givenListeners(cfg); err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		s.log.Warn(w)
	}
	s.wait = &patience{left: cfg.StartWait, log: s.log, progress: func(what string) { s.systemd.starts("waiting for " + what) }}
	s.secure, err = await(ctx, s.wait, "the certificate", func() (encryption, error) { return newEncryption(cfg, s.log) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.openData(ctx); err != nil {
		return err
	}
	if err := s.openKeys(ctx, stderr); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	return s.run(ctx, hangup)
}

// closeAtEnd calls end when the service stops, before what was opened earlier is closed.
func (s *service) closeAtEnd(end func() error) { s.closers = append(s.closers, end) }

func (s *service) close() (err error) {
	for _, end := range slices.Backward(s.closers) {
		err = errors.Join(err, end())
	}
	return err
}

// openData opens what is in DATA_DIR: the lock, the database with its secret, and the books. What keys have used of their limits is read
// with them.
func (s *service) openData(ctx context.Context) error {
	held, err := await(ctx, s.wait, "DATA_DIR", func() (*books.Journal, error) { return holdData(s.cfg.DataDir) })
	if err != nil {
		return err
	}
	s.closeAtEnd(func() error { held.Release(); return nil })
	if err := checkModes(s.cfg, s.log); err != nil {
		return err
	}
	s.systemd.starts("opening the database")
	s.store, err = await(ctx, s.wait, "the database", func() (st *store.Store, err error) {
		st, s.secret, err = makeDatabase(ctx, s.cfg, s.log)
		return st, err
	})
	if err != nil {
		return err
	}
	s.closeAtEnd(s.store.Close)

	s.systemd.starts("importing the journal of the last run")
	s.running = clock.Start()
	s.books, err = await(ctx, s.wait, "the books", func() (*books.Books, error) {
		s.limits = limit.NewMemory(s.running)
		b, err := books.Open(ctx, s.cfg.DataDir, s.store, s.log, books.Options{
			MaxBytes: int64(s.cfg.JournalMaxBytes), Held: held,
			Later: func(r *api.Record) { restoreLater(s.limits, r, time.Now(), s.cfg.MaxRequestTime) },
			Begin: func() error { return restoreLimits(ctx, s.store, s.limits, s.cfg.MaxRequestTime) },
		})
		if err != nil {
			return nil, databasef("%w", withHint(err))
		}
		return b, nil
	})
	if err != nil {
		return err
	}
	s.closeAtEnd(func() error {
		last, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		return s.books.Close(last)
	})
	return nil
}

// openKeys prepares the check of keys, and creates the first key if there is none.
func (s *service) openKeys(ctx context.Context, stderr io.Writer) error {
	s.keys = auth.New(s.store, s.secret, staticKeys(s.cfg), time.Now)
	s.closeAtEnd(func() error { s.keys.Close(); return nil })
	return s.wait.until(ctx, "the first key", func() error { return firstAdmin(ctx, s.cfg, s.store, s.secret, stderr, s.log) })
}

// connect makes the gateway, with its Ollama servers and the collector of its traces.
func (s *service) connect(ctx context.Context) (err error) {
	cfg := s.cfg
	if s.traces, err = newTraces(ctx, cfg, s.log); err != nil {
		return err
	}
	s.closeAtEnd(func() error { s.traces.close(s.log); return nil })
	means, err := newMeans(cfg, s.log)
	if err != nil {
		return err
	}
	fleet, static, err := newFleet(ctx, cfg, means, s.store, s.log)
	if err != nil {
		return err
	}
	s.copies = backups(cfg, s.store, s.log)
	s.gateway = server.New(server.Options{
		Parts: admin.Parts{
			Version: buildVersion(), Log: s.log, Random: rand.Reader, Store: s.store, Auth: s.keys, Secret: s.secret, Limits: s.limits,
			Books: s.books, Fleet: fleet, Means: means, Static: static, Refuses: cfg.RefuseBackend,
		},
		Queue: sched.Options{MaxQueue: cfg.MaxQueue, PerKey: cfg.MaxQueuePerKey, MaxWait: cfg.MaxQueueWait, Prefix: cfg.PrefixAffinity},
		Live:  live(cfg),
		Upstream: server.Upstream{
			FirstByte: cfg.UpstreamFirstByteTimeout, Idle: cfg.UpstreamIdleTimeout, CountGrace: cfg.CountGrace, TraceUpstream: cfg.TraceUpstream,
		},
		Bounds: server.Bounds{
			MaxBody: int64(cfg.MaxBodyBytes), BodyMemory: int64(cfg.MaxBodyMemory), MaxRequestTime: cfg.MaxRequestTime, Heartbeat: cfg.SSEHeartbeat,
			PerAddress: cfg.MaxConnectionsPerAddress, StopDelay: cfg.ShutdownDelay,
		},
		Access: server.Access{
			BasePath: string(cfg.BasePath), ProxyProtocol: bool(cfg.ProxyProtocol), Throttle: auth.NewThrottle(cfg.AuthFailuresPerMinute, time.Now),
			MetricsOpen: cfg.MetricsOpen, TLS: s.secure.config, HSTS: cfg.HSTS, Expiry: s.secure.expiry,
		},
		Reports: server.Reports{
			Tracer: s.traces.tracer, LogAddress: api.AddressDetail(cfg.LogClientAddress), LogLinesLost: s.lines.lost.Load,
			BackupEvery: cfg.BackupEvery, LastBackup: s.copies.Last,
		},
	})
	return nil
}

// run answers requests until ctx ends. Meanwhile it watches the servers, the changes of keys and the settings.
func (s *service) run(ctx context.Context, hangup <-chan os.Signal) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	wait := s.tend(ctx, background)
	defer func() { stop(); wait() }() // after the last request
	if len(s.listeners) == 0 {
		l, err := await(ctx, s.wait, "the address "+s.cfg.Address(), func() (net.Listener, error) { return listen(s.cfg) })
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	first := s.listeners[0]
	if err := s.secure.follow(background, first.Addr()); err != nil {
		return errors.Join(err, first.Close())
	}
	boundMemory(s.cfg, s.log)
	go returnUnused(background)
	defer runtime.KeepAlive(make([]byte, ballast))

	s.log.Info("listening", "addr", first.Addr().String(), "url", listenURL(s.cfg, first), "version", buildVersion(),
		"backends", len(s.gateway.Fleet.All()))
	for _, l := range s.listeners[1:] {
		s.log.Info("listening", "addr", l.Addr().String())
	}
	s.lines.flush()
	s.started = true
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("the watchdog of systemd is not used, because its interval cannot be read", "cause", err.Error())
	}
	s.systemd.ready("serving at " + first.Addr().String())
	s.systemd.watch(interval, func() { s.gateway.Sched.Snapshot(); s.books.Depth() })
	reload := reloader{cfg: s.cfg, log: s.log, lines: s.lines, keys: s.keys, gateway: s.gateway, secure: s.secure, systemd: s.systemd}
	go reload.follow(background, hangup) // shutdown does not wait for it: its files may be on a disk that hangs
	defer context.AfterFunc(ctx, func() { s.systemd.stops(s.cfg.ShutdownDelay + s.cfg.ShutdownGrace + stopExtra) })()
	err = s.gateway.ServeAll(ctx, s.listeners, s.cfg.ShutdownGrace)
	s.log.Info("stopped")
	return err
}

// tend asks the Ollama servers for the first time, and starts the work in the background, until background ends. The function that it
// returns waits for the end of that work.
func (s *service) tend(ctx, background context.Context) (wait func()) {
	fleet := s.gateway.Fleet
	s.systemd.starts("asking the Ollama servers")
	fleet.ProbeAll(ctx)
	for _, b := range fleet.All() {
		logFound(s.log, b)
	}
	var tending sync.WaitGroup
	tending.Go(func() {
		fleet.Watch(background, func(b *backend.Backend, state backend.State) { logBackend(s.log, b, state) })
	})
	tending.Go(func() {
		s.store.Trim(background, store.Retention{
			Rows: time.Duration(s.cfg.RetentionRows) * 24 * time.Hour, Rollups: time.Duration(s.cfg.RetentionRollups) * 24 * time.Hour,
			Running: s.running,
		}, time.Now, s.log)
	})
	tending.Go(func() { s.store.SumUp(background, time.Now, s.log) })
	if s.copies != nil {
		go s.copies.Run(background) // shutdown does not wait for it: its directory may be on a disk that hangs
	}
	go watchChanges(background, s.store, s.keys, s.log)
	return tending.Wait
}

// makeDatabase opens the database and its secret, and creates them if they do not exist. It creates a secret only for a new database: it
// would be the wrong one for existing keys.
func makeDatabase(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *store.Store, secret auth.Secret, err error) {
	st, err := store.CreateLogged(ctx, databasePath(cfg), log, store.CreateOptions{Copy: cfg.MigrationCopy, Now: time.Now})
	if err != nil {
		return nil, secret, databasef("%w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.Close())
		}
	}()
	check, err := st.SecretCheck(ctx)
	if err != nil {
		return nil, secret, err
	}
	text, err := config.Secret(cfg.DataDir, string(cfg.SecretKey), check == nil)
	if err != nil {
		return nil, secret, err
	}
	secret = auth.NewSecret(text, string(cfg.SecretKeyPrevious))
	outdated := check == nil
	if check != nil {
		var ok bool
		if ok, outdated = secret.Check(check); !ok {
			return nil, secret, wrongSecret(cfg)
		}
	}
	if outdated {
		err = st.SetSecretCheck(ctx, secret.CheckMAC())
	}
	return st, secret, err
}

// restoreLimits counts the admissions of the last hour and the usage of the last day, so that a restart does not reset any limit.
func restoreLimits(ctx context.Context, st *store.Store, limits *limit.Memory, longest time.Duration) error {
	now := time.Now()
	admitted, err := st.AdmittedSince(ctx, now.Add(-limit.RequestWindow).Truncate(time.Minute))
	if err != nil {
		return err
	}
	for _, a := range admitted {
		limits.Restore(a.Key, a.Minute, a.Count)
	}
	used, err := st.UsedSince(ctx, now.Add(-limit.UsageWindow).Truncate(time.Minute), now, longest)
	if err != nil {
		return err
	}
	for _, u := range used {
		limits.RestoreUsed(u.Key, u.Minute, limit.Used{Tokens: u.Tokens, GPU: u.GPU})
	}
	return nil
}

// restoreLater counts a row of the last run that is not in the database yet as restoreLimits counts those in the database.
func restoreLater(limits *limit.Memory, r *api.Record, now time.Time, longest time.Duration) {
	if r.ErrorCode == api.CodeNoBackend || r.At.After(now) {
		return
	}
	limits.Restore(r.Key, r.At, 1)
	took := r.Total
	if took <= 0 {
		took = longest
	}
	ended := r.At.Add(took)
	if ended.After(now) {
		ended = now
	}
	gpu := r.GPU
	if gpu < 0 {
		gpu = min(r.ReservedGPU, longest)
	}
	limits.RestoreUsed(r.Key, ended, limit.Used{Tokens: max(r.Reserved, r.PromptTokens+r.CompletionTokens), GPU: gpu})
}

// staticKeys returns the keys of the settings.
func staticKeys(cfg *config.Config) []auth.Static {
	admin := api.NewKey("ADMIN_API_KEY", api.RoleAdmin, &cfg.DefaultAdminRateLimit)
	var list []auth.Static
	if cfg.AdminAPIKey != "" {
		list = append(list, auth.Static{Preview: "env-admin", Key: admin, Secret: string(cfg.AdminAPIKey)})
	}
	if cfg.DemoKeys {
		admin.Name = "Demo admin"
		user := api.NewKey("Demo user", api.RoleUser, &cfg.DefaultUserRateLimit)
		//nolint:gosec // known to everyone on purpose: config refuses them on a HOST that others reach
		list = append(list, auth.Static{Preview: "demo-admin", Key: admin, Secret: "demo-admin-key-12345", Demo: true},
			auth.Static{Preview: "demo-user", Key: user, Secret: "demo-user-key-67890", Demo: true})
	}
	return list
}

// firstAdmin creates an admin key if there is none, and prints it on standard error, never in the log. Under systemd, standard error is a
// log, so the key goes to a file. It also goes to a file if standard error cannot be written.
func firstAdmin(ctx context.Context, cfg *config.Config, st *store.Store, secret auth.Secret, stderr io.Writer, log *slog.Logger) error {
	if cfg.AdminAPIKey != "" {
		return nil
	}
	now := time.Now()
	if exists, err := st.AdminExists(ctx, now); err != nil || exists {
		return err
	}
	key, preview, err := auth.Mint(rand.Reader)
	if err != nil {
		return err
	}
	k := api.NewKey("First admin", api.RoleAdmin, &cfg.DefaultAdminRateLimit)
	k.Preview, k.CreatedAt = preview, now
	kept := journalled(stderr)
	if kept { // write the file first: a key whose only copy is lost is useless
		if err := keepFirstAdmin(cfg, key); err != nil {
			return err
		}
	}
	if err := st.CreateKey(ctx, k, secret.MAC(key), api.Change{Actor: "first-start", From: "local", At: now}); err != nil {
		return err
	}
	path := firstAdminPath(cfg)
	if kept {
		// If standard error cannot be written, the documentation still names the file.
		_, _ = fmt.Fprintf(stderr, "The first admin key is in %s: store it in a safe place, then delete the file.\n", path)
		return nil
	}
	if _, err = fmt.Fprintf(stderr, "\n  First admin key: %s\n  It is shown only once: store it in a safe place.\n\n", key); err != nil {
		log.Warn("the first admin key could not be printed on standard error, so it is in a file: store it in a safe place, then delete the file", "path", path, "cause", err.Error())
		return keepFirstAdmin(cfg, key)
	}
	return nil
}

// journalled reports whether systemd's journal keeps what is written to w.
func journalled(w io.Writer) bool {
	if b, ok := w.(*boundedWriter); ok {
		w = b.out
	}
	f, ok := w.(*os.File)
	return ok && config.Journalled(f)
}

func firstAdminPath(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "first-admin.key") }

func keepFirstAdmin(cfg *config.Config, key string) error {
	if err := os.WriteFile(firstAdminPath(cfg), []byte(key+"\n"), 0o600); err != nil {
		return fmt.Errorf("the first admin key cannot be written: %w; create one with `%s keys create --role admin --name NAME`", withHint(err), programName)
	}
	return nil
}

// watchChanges clears the key cache when another process, such as the keys command, has changed the database.
func watchChanges(ctx context.Context, st *store.Store, keys *auth.Authenticator, log *slog.Logger) {
	var last int64
	for {
		v, err := st.DataVersion(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Error("changes that other processes make to the database cannot be detected", "cause", err.Error())
		case v != last:
			last = v
			keys.Forget()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(changePoll):
		}
	}
}
