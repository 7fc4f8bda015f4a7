package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/limit"
	"ollama-api-service/internal/sched"
	"ollama-api-service/internal/server"
	"ollama-api-service/internal/store"
	"ollama-api-service/internal/usage"
)

const (
	changePoll   = 250 * time.Millisecond        // how soon a change made by another process is seen
	drainTimeout = 15 * time.Second              // for the last rows to reach the database
	hour         = 61 * time.Minute              // as far back as a request counts against a limit
	day          = 24*time.Hour + 15*time.Minute // and what it used
)

// serve runs the gateway until ctx ends. It wires every room, top down.
func serve(ctx context.Context, cfg *config.Config, stdout, stderr io.Writer) (err error) {
	log, flush := newLogger(cfg, stdout)
	defer flush()
	defer func() {
		if err != nil {
			log.Error("not serving", "cause", err.Error())
		}
	}()
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	secure, err := newEncryption(cfg, log)
	if err != nil {
		return err
	}
	st, secret, err := makeDatabase(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()

	books, err := usage.Open(ctx, cfg.DataDir, st, log, usage.Options{MaxBytes: int64(cfg.JournalMaxBytes)})
	if err != nil {
		return databasef("%w", err)
	}
	defer func() {
		last, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		err = errors.Join(err, books.Close(last))
	}()
	limits := limit.NewMemory(time.Now)
	if err := restoreLimits(ctx, st, limits, cfg.MaxRequestTime); err != nil {
		return err
	}

	keys := auth.New(st, secret, staticKeys(cfg), time.Now)
	defer keys.Close()
	if err := firstAdmin(ctx, cfg, st, secret, stderr); err != nil {
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

	gateway := server.New(server.Options{
		Store: st, Auth: keys, Secret: secret, Random: rand.Reader, Limits: limits,
		Fleet: fleet, Queue: sched.Options{MaxQueue: cfg.MaxQueue, PerKey: cfg.MaxQueuePerKey, MaxWait: cfg.MaxQueueWait, Prefix: cfg.PrefixAffinity}, Books: books, Log: log, Version: buildVersion(),
		Means: means, Static: static, Refuses: cfg.RefuseBackend,
		DefaultLimits: map[api.Role]int64{api.RoleAdmin: cfg.DefaultAdminRateLimit, api.RoleUser: cfg.DefaultUserRateLimit},
		BasePath:      string(cfg.BasePath), ProxyProtocol: bool(cfg.ProxyProtocol), StaticAdmin: cfg.AdminAPIKey != "", TrustedProxies: cfg.TrustedProxies, MetricsOpen: cfg.MetricsOpen, Aliases: api.Aliases(cfg.ModelAliases),
		Policy: cfg.Policy, Standard: dialect.Standard(cfg.MaxNumCtx, cfg.MaxKeepAlive, cfg.DefaultMaxTokens), Registries: cfg.RegistryHosts,
		MaxBody: int64(cfg.MaxBodyBytes), BodyMemory: int64(cfg.MaxBodyMemory), MaxRequestTime: cfg.MaxRequestTime, FirstByte: cfg.UpstreamFirstByteTimeout, Idle: cfg.UpstreamIdleTimeout, CountGrace: cfg.CountGrace, Heartbeat: cfg.SSEHeartbeat,
		Throttle: auth.NewThrottle(cfg.AuthFailuresPerMinute, time.Now), Origins: cfg.CORSOrigins, PerAddress: cfg.MaxConnectionsPerAddress, TLS: secure.config, Expiry: secure.expiry,
		Tracer: traces.tracer, TraceUpstream: cfg.TraceUpstream,
	})

	background, stop := context.WithCancel(ctx)
	defer stop()
	fleet.ProbeAll(ctx)
	for _, b := range fleet.All() {
		logFound(log, b)
	}
	var tending sync.WaitGroup
	tending.Go(func() {
		fleet.Watch(background, func(b *backend.Backend, s backend.State) { logBackend(log, b, s) })
	})
	tending.Go(func() {
		st.Trim(background, store.Retention{Rows: time.Duration(cfg.RetentionRows) * 24 * time.Hour, Rollups: time.Duration(cfg.RetentionRollups) * 24 * time.Hour}, time.Now, log)
	})
	defer func() { stop(); tending.Wait() }()
	go watchChanges(background, st, keys, log)

	l, err := listen(cfg)
	if err != nil {
		return err
	}
	if err := secure.follow(background, l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	// A small heap is collected all the time: at 20,000 requests a second that was a fifth of the CPU. These bytes are never
	// touched, so they cost no memory; they let the collector wait until about as much has been thrown away.
	ballast := make([]byte, 64<<20)
	defer runtime.KeepAlive(ballast)

	log.Info("listening", "addr", l.Addr().String(), "url", listenURL(cfg, l), "version", buildVersion(), "backends", len(fleet.All()))
	flush()
	err = gateway.Serve(ctx, l, cfg.ShutdownGrace)
	log.Info("stopped")
	return err
}

// makeDatabase opens the database and its secret, and makes what is missing. A secret is made for a new database alone: for one
// that has keys it would be the wrong one.
func makeDatabase(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *store.Store, secret auth.Secret, err error) {
	st, err := store.CreateLogged(ctx, databasePath(cfg), log)
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

// restoreLimits counts what the last hour has admitted and the last day has used, so that a restart gives nobody a new limit.
func restoreLimits(ctx context.Context, st *store.Store, limits *limit.Memory, longest time.Duration) error {
	now := time.Now()
	admitted, err := st.AdmittedSince(ctx, now.Add(-hour).Truncate(time.Minute))
	if err != nil {
		return err
	}
	for _, a := range admitted {
		limits.Restore(a.Key, a.Minute, a.Count)
	}
	used, err := st.UsedSince(ctx, now.Add(-day).Truncate(time.Minute), longest)
	if err != nil {
		return err
	}
	for _, u := range used {
		limits.RestoreUsed(u.Key, u.Minute, limit.Used{Tokens: u.Tokens, GPU: u.GPU})
	}
	return nil
}

// staticKeys are the keys that live in settings.
func staticKeys(cfg *config.Config) []auth.Static {
	admin := api.Key{Name: "ADMIN_API_KEY", Role: api.RoleAdmin, Weight: api.DefaultWeight, Class: api.ClassInteractive, RateLimit: &cfg.DefaultAdminRateLimit}
	var list []auth.Static
	if cfg.AdminAPIKey != "" {
		list = append(list, auth.Static{Preview: "env-admin", Key: admin, Secret: string(cfg.AdminAPIKey)})
	}
	if cfg.DemoKeys {
		admin.Name = "Demo admin"
		user := api.Key{Name: "Demo user", Role: api.RoleUser, Weight: api.DefaultWeight, Class: api.ClassInteractive, RateLimit: &cfg.DefaultUserRateLimit}
		list = append(list, auth.Static{Preview: "demo-admin", Key: admin, Secret: "demo-admin-key-12345", Demo: true},
			auth.Static{Preview: "demo-user", Key: user, Secret: "demo-user-key-67890", Demo: true})
	}
	return list
}

// firstAdmin makes an admin key where there is none, and prints it: on the terminal, never in the log. Under systemd standard error is
// a log, so there it goes to a file.
func firstAdmin(ctx context.Context, cfg *config.Config, st *store.Store, secret auth.Secret, stderr io.Writer) error {
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
	k := api.Key{Preview: preview, Name: "First admin", Role: api.RoleAdmin, RateLimit: &cfg.DefaultAdminRateLimit, CreatedAt: now}
	if err := st.CreateKey(ctx, k, secret.MAC(key), api.Change{Actor: "first-start", From: "local", At: now}); err != nil {
		return err
	}
	if f, ok := stderr.(*os.File); ok && config.Journalled(f) {
		path := filepath.Join(cfg.DataDir, "first-admin.key")
		if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
			return fmt.Errorf("the first admin key cannot be written: %w; make one with `%s keys create --role admin --name NAME`", err, programName)
		}
		_, err = fmt.Fprintf(stderr, "The first admin key is in %s: keep it in a safe place, then delete the file.\n", path)
		return err
	}
	_, err = fmt.Fprintf(stderr, "\n  First admin key: %s\n  It is shown this once: keep it in a safe place.\n\n", key)
	return err
}

// watchChanges drops the key cache when another process (the keys command) has changed the database.
func watchChanges(ctx context.Context, st *store.Store, keys *auth.Authenticator, log *slog.Logger) {
	var last int64
	for {
		v, err := st.DataVersion(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Error("the database cannot be watched for changes of other processes", "cause", err.Error())
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
