package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/dial"
	"ollama-api-service/internal/store"
)

// newFleet returns the servers of the settings, followed by those that admins added. Drained servers stay drained.
func newFleet(
	ctx context.Context, cfg *config.Config, means dial.Means, st *store.Store, log *slog.Logger,
) (*backend.Fleet, map[string]bool, error) {
	kept, err := st.Backends(ctx)
	if err != nil {
		return nil, nil, err
	}
	drained := map[string]bool{}
	for _, b := range kept {
		drained[b.Name] = b.Draining
	}
	fleet, static := backend.NewFleet(), map[string]bool{}
	for _, b := range cfg.Ollama {
		b.Draining = drained[b.Name]
		static[b.Name] = true
		fleet.Add(backend.Of(b, means))
	}
	for _, b := range kept {
		switch {
		case b.URL == nil: // of the settings
		case static[b.Name]:
			log.Warn("OLLAMA_BASE_URL and an admin use the same name for two servers: the one added by the admin is not used; rename one of them",
				"backend", b.Name, "url", b.URL.String())
		default:
			fleet.Add(backend.Of(b, means))
		}
	}
	return fleet, static, nil
}

// newMeans returns the settings for connections to Ollama servers. The probes wait for a file that does not exist yet.
func newMeans(cfg *config.Config, log *slog.Logger) (dial.Means, error) {
	file := func(path, name string) dial.Text {
		if path == "" {
			return dial.Text{}
		}
		return dial.Text{File: path, Name: name}
	}
	m := dial.Means{
		CA:   file(cfg.OllamaCA, api.SettingCA),
		Cert: file(cfg.OllamaClientCert, api.SettingClientCert), Key: file(cfg.OllamaClientKey, api.SettingClientKey),
		Header: cfg.OllamaAuthHeader.Name, Value: string(cfg.OllamaAuthHeader.Value), Log: log,
	}
	tls := m.Access().TLS
	if tls == nil {
		return m, nil
	}
	switch _, err := tls(); {
	case errors.Is(err, fs.ErrNotExist):
		log.Warn("a file for HTTPS to Ollama servers does not exist yet: put it in place, and the service reads it", "cause", err.Error())
	case err != nil:
		return m, usagef("%w; name PEM files that the user of the service may read", err)
	}
	return m, nil
}

// logFound logs at start what is wrong with a server.
func logFound(log *slog.Logger, b *backend.Backend) {
	s := b.State()
	switch {
	case !s.Healthy:
		log.Warn("the Ollama server does not answer yet: start it, or set OLLAMA_BASE_URL to where it is", "backend", b.Name, "reason", s.Reason)
	case s.Draining:
		log.Warn("the Ollama server is drained: it gets no requests until an admin undrains it", "backend", b.Name)
	}
	logVulnerabilities(log, b.Name, s)
}

func logBackend(log *slog.Logger, b *backend.Backend, s backend.State) {
	if s.Healthy {
		log.Info("the Ollama server answers", "backend", b.Name, "version", s.Version)
		logVulnerabilities(log, b.Name, s)
		return
	}
	log.Error("the Ollama server does not answer", "backend", b.Name, "reason", s.Reason)
}

// logVulnerabilities warns of a version with known vulnerabilities.
func logVulnerabilities(log *slog.Logger, name string, s backend.State) {
	if known := s.Vulnerabilities(); len(known) > 0 {
		log.Warn("the Ollama server has known vulnerabilities: upgrade it, and let only this service reach it", "backend", name, "version", s.Version, "known", known)
	}
}
