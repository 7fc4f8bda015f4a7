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
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
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

// serve runs the gateway until ctx ends. It creates and connects all parts, top down.
func serve(ctx context.Context, cfg *config.Config, hangup <-chan os.Signal, stdout, stderr io.Writer) (err error) {
	manager := supervise(systemd)
	defer manager.close()
	log, lines := newLogger(cfg, stdout)
	defer lines.close()
	slog.SetDefault(log) // libraries log through it too; their default logger could block on standard error
	started := false
	defer func() {
		if ctx.Err() != nil && !started && err != nil {
			log.Info("stopped during the start", "cause", sentence(err))
			err = nil
		}
		if err != nil {
			log.Error("not serving", "cause", sentence(err))
		}
	}()
	listeners, err := givenListeners(cfg)
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	wait := &patience{left: cfg.StartWait, log: log, progress: func(what string) { manager.starts("waiting for " + what) }}
	secure, err := await(ctx, wait, "the certificate", func() (encryption, error) { return newEncryption(cfg, log) })
	if err != nil {
		return err
	}
	held, err := await(ctx, wait, "DATA_DIR", func() (*books.Journal, error) { return holdData(cfg.DataDir) })
	if err != nil {
		return err
	}
	defer held.Release()
	if err := checkModes(cfg, log); err != nil {
		return err
	}
	manager.starts("opening the database")
	var secret auth.Secret
	st, err := await(ctx, wait, "the database", func() (st *store.Store, err error) {
		st, secret, err = makeDatabase(ctx, cfg, log)
		return st, err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()

	manager.starts("importing the journal of the last run")
	running := clock.Start()
	var limits *limit.Memory
	books, err := await(ctx, wait, "the books", func() (*books.Books, error) {
		limits = limit.NewMemory(running)
		b, err := books.Open(ctx, cfg.DataDir, st, log, books.Options{
			MaxBytes: int64(cfg.JournalMaxBytes), Held: held,
			Later: func(r *api.Record) { restoreLater(limits, r, time.Now(), cfg.MaxRequestTime) },
			Begin: func() error { return restoreLimits(ctx, st, limits, cfg.MaxRequestTime) },
		})
		if err != nil {
			return nil, databasef("%w", withHint(err))
		}
		return b, nil
	})
	if err != nil {
		return err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		err = errors.Join(err, books.Close(last))
	}()

	keys := auth.New(st, secret, staticKeys(cfg), time.Now)
	defer keys.Close()
	if err := wait.until(ctx, "the first key", func() error { return firstAdmin(ctx, cfg, st, secret, stderr, log) }); err != nil {
		return err
	}

	traces, err := newTraces(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer traces.close(log)

	means, err := newMeans(cfg, log)
	if err != nil {
		return err
	}
	fleet, static, err := newFleet(ctx, cfg, means, st, log)
	if err != nil {
		return err
	}

	copies := backups(cfg, st, log)
	gateway := server.New(server.Options{
		Version: buildVersion(), Log: log, Random: rand.Reader, Store: st, Auth: keys, Secret: secret, Limits: limits, Books: books, Fleet: fleet,
		Queue: sched.Options{MaxQueue: cfg.MaxQueue, PerKey: cfg.MaxQueuePerKey, MaxWait: cfg.MaxQueueWait, Prefix: cfg.PrefixAffinity},
		Live:  live(cfg),
		Upstream: server.Upstream{
			Means: means, Static: static, Refuses: cfg.RefuseBackend,
			FirstByte: cfg.UpstreamFirstByteTimeout, Idle: cfg.UpstreamIdleTimeout, CountGrace: cfg.CountGrace, TraceUpstream: cfg.TraceUpstream,
		},
		Bounds: server.Bounds{
			MaxBody: int64(cfg.MaxBodyBytes), BodyMemory: int64(cfg.MaxBodyMemory), MaxRequestTime: cfg.MaxRequestTime, Heartbeat: cfg.SSEHeartbeat,
			PerAddress: cfg.MaxConnectionsPerAddress, StopDelay: cfg.ShutdownDelay,
		},
		Access: server.Access{
			BasePath: string(cfg.BasePath), ProxyProtocol: bool(cfg.ProxyProtocol), Throttle: auth.NewThrottle(cfg.AuthFailuresPerMinute, time.Now),
			MetricsOpen: cfg.MetricsOpen, TLS: secure.config, HSTS: cfg.HSTS, Expiry: secure.expiry,
		},
		Reports: server.Reports{
			Tracer: traces.tracer, LogAddress: api.AddressDetail(cfg.LogClientAddress), LogLinesLost: lines.lost.Load,
			BackupEvery: cfg.BackupEvery, LastBackup: copies.Last,
		},
	})

	// Watch the servers and the changes of keys until the last request has ended.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	manager.starts("asking the Ollama servers")
	fleet.ProbeAll(ctx)
	for _, b := range fleet.All() {
		logFound(log, b)
	}
	var tending sync.WaitGroup
	tending.Go(func() {
		fleet.Watch(background, func(b *backend.Backend, s backend.State) { logBackend(log, b, s) })
	})
	tending.Go(func() {
		st.Trim(background, store.Retention{
			Rows: time.Duration(cfg.RetentionRows) * 24 * time.Hour, Rollups: time.Duration(cfg.RetentionRollups) * 24 * time.Hour, Running: running,
		}, time.Now, log)
	})
	if copies != nil {
		go copies.Run(background) // shutdown does not wait for it: its directory may be on a disk that hangs
	}
	defer func() { stop(); tending.Wait() }()
	go watchChanges(background, st, keys, log)

	if len(listeners) == 0 {
		l, err := await(ctx, wait, "the address "+cfg.Address(), func() (net.Listener, error) { return listen(cfg) })
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	addr := listeners[0].Addr()
	if err := secure.follow(background, addr); err != nil {
		return errors.Join(err, listeners[0].Close())
	}
	boundMemory(cfg, log)
	go returnUnused(background)
	defer runtime.KeepAlive(make([]byte, ballast))

	log.Info("listening", "addr", addr.String(), "url", listenURL(cfg, listeners[0]), "version", buildVersion(), "backends", len(fleet.All()))
	for _, l := range listeners[1:] {
		log.Info("listening", "addr", l.Addr().String())
	}
	lines.flush()
	started = true
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog of systemd is not used, because its interval cannot be read", "cause", err.Error())
	}
	manager.ready("serving at " + addr.String())
	manager.watch(interval, func() { gateway.Sched.Snapshot(); books.Depth() })
	reload := reloader{cfg: cfg, log: log, lines: lines, keys: keys, gateway: gateway, secure: secure, systemd: manager}
	go reload.follow(background, hangup) // shutdown does not wait for it: its files may be on a disk that hangs
	defer context.AfterFunc(ctx, func() { manager.stops(cfg.ShutdownDelay + cfg.ShutdownGrace + stopExtra) })()
	err = gateway.ServeAll(ctx, listeners, cfg.ShutdownGrace)
	log.Info("stopped")
	return err
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
