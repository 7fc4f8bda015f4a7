package main

import (
	"context"
	"log/slog"
	"os"
	"slices"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/server"
)

// live returns the settings that affect requests and can change while the service runs.
func live(cfg *config.Config) server.Live {
	return server.Live{
		DefaultLimits: map[api.Role]int64{api.RoleAdmin: cfg.DefaultAdminRateLimit, api.RoleUser: cfg.DefaultUserRateLimit},
		StaticAdmin:   cfg.AdminAPIKey != "", TrustedProxies: cfg.TrustedProxies, Aliases: api.Aliases(cfg.ModelAliases), Policy: cfg.Policy,
		Standard:   dialect.Standard(cfg.MaxNumCtx, cfg.MaxKeepAlive, cfg.DefaultMaxTokens),
		Registries: cfg.RegistryHosts, Origins: cfg.CORSOrigins,
	}
}

// reloader applies changed settings. cfg holds the settings in force.
type reloader struct {
	cfg     *config.Config
	log     *slog.Logger
	lines   *lineWriter
	keys    *auth.Authenticator
	gateway *server.Server
	secure  encryption
	systemd *supervisor
}

// follow reads the settings again at each signal, until ctx ends.
func (r *reloader) follow(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			done := r.systemd.reloads()
			r.reload()
			done()
		}
	}
}

// reload applies the settings that can change while the service runs. If any setting is wrong, nothing changes.
func (r *reloader) reload() {
	change, err := r.cfg.Reread()
	useCertificate := func() {}
	if err == nil && change.Config.TLSCert != "" && r.secure.prepare != nil {
		if useCertificate, err = r.secure.prepare(change.Config.TLSCert, change.Config.TLSKey); err != nil {
			err = unusableCertificate(err)
		}
	}
	if err != nil {
		r.log.Error("the settings were not reloaded and the previous ones stay in force: correct them, then reload again",
			"cause", err.Error())
		return
	}
	before, now := r.cfg, change.Config
	useCertificate()
	r.keys.ChangeStatics(staticKeys(now))
	r.gateway.Change(live(now))
	r.cfg = now
	// These lines are logged under the lower one of the previous and the new level.
	r.lines.level.Set(min(before.LogLevel, now.LogLevel))
	r.log.Info("the settings were reloaded", "changed", orEmpty(change.Taken))
	if len(change.Restart) > 0 {
		r.log.Warn("some changed settings need a restart; until then the previous values stay in force", "settings", change.Restart)
	}
	if len(change.Environment) > 0 {
		r.log.Warn("the environment overrides the settings file, and the environment of a running service cannot change", "settings", change.Environment)
	}
	for _, w := range now.Warnings {
		if !slices.Contains(before.Warnings, w) {
			r.log.Warn(w)
		}
	}
	r.lines.level.Set(now.LogLevel)
	r.lines.flush()
}
