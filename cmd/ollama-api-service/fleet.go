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

// newFleet is the servers that the settings name, and then those that admins have added, drained as they were left.
func newFleet(ctx context.Context, cfg *config.Config, means dial.Means, st *store.Store, log *slog.Logger) (*backend.Fleet, map[string]bool, error) {
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
			log.Warn("OLLAMA_BASE_URL names a server as one that was added by an admin is named: that one is not used; give one of them another name",
				"backend", b.Name, "url", b.URL.String())
		default:
			fleet.Add(backend.Of(b, means))
		}
	}
	return fleet, static, nil
}

// newMeans are what the settings say that Ollama servers are reached with. A file that is not there yet is waited for by the probes.
func newMeans(cfg *config.Config, log *slog.Logger) (dial.Means, error) {
	file := func(path, name string) dial.Text {
		if path == "" {
			return dial.Text{}
		}
		return dial.Text{File: path, Name: name}
	}
	m := dial.Means{
		CA: file(cfg.OllamaCA, api.SettingCA), Cert: file(cfg.OllamaClientCert, api.SettingClientCert), Key: file(cfg.OllamaClientKey, api.SettingClientKey),
		Header: cfg.OllamaAuthHeader.Name, Value: string(cfg.OllamaAuthHeader.Value), Log: log,
	}
	tls := m.Access().TLS
	if tls == nil {
		return m, nil
	}
	switch _, err := tls(); {
	case errors.Is(err, fs.ErrNotExist):
		log.Warn("a file for the HTTPS of Ollama servers is not there yet: put it in place, and it is taken up", "cause", err.Error())
	case err != nil:
		return m, usagef("%w; name PEM files that the user this runs as may read", err)
	}
	return m, nil
}

// logFound says at start what was found of a server that is not as it should be.
func logFound(log *slog.Logger, b *backend.Backend) {
	s := b.State()
	switch {
	case !s.Healthy:
		log.Warn("the Ollama server does not answer yet: start it, or set OLLAMA_BASE_URL to where it is", "backend", b.Name, "reason", s.Reason)
	case s.Draining:
		log.Warn("the Ollama server is drained: it gets no requests until an admin ends that", "backend", b.Name)
	}
	logHoles(log, b.Name, s)
}

func logBackend(log *slog.Logger, b *backend.Backend, s backend.State) {
	if s.Healthy {
		log.Info("the Ollama server answers", "backend", b.Name, "version", s.Version)
		logHoles(log, b.Name, s)
		return
	}
	log.Error("the Ollama server does not answer", "backend", b.Name, "reason", s.Reason)
}

// logHoles warns of a version with known vulnerabilities.
func logHoles(log *slog.Logger, name string, s backend.State) {
	if holes := s.Holes(); len(holes) > 0 {
		log.Warn("the Ollama server has known vulnerabilities: upgrade it, and let nobody reach it but this service", "backend", name, "version", s.Version, "known", holes)
	}
}
