package backend

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// Installed is a model of /api/tags.
type Installed struct {
	Digest string
	Embeds bool // it only makes embeddings
}

// Loaded is a model of /api/ps.
type Loaded struct {
	VRAM    int64 // bytes
	Split   bool  // only a part of it is in the memory of the graphics card
	Context int64 // tokens; 0 before Ollama 0.10, which does not report it
	Expires time.Time
}

// lists are what a server reported about its models.
type lists struct {
	installed map[string]Installed
	loaded    map[string]Loaded
	// keepInstalled and keepLoaded report that the list did not arrive in time. The last known list is then kept, because a server
	// whose models are unknown gets requests for any model.
	keepInstalled, keepLoaded bool
}

func (l lists) into(s *State) {
	if !l.keepInstalled {
		s.Installed = l.installed
	}
	if !l.keepLoaded {
		s.Loaded = l.loaded
		if len(l.loaded) == 0 {
			s.usual = nil // as after a restart, which may bring other settings
		}
	}
}

// lists reads both lists. A list that the server hides, or that makes no sense, is nil.
func (b *Backend) lists(ctx context.Context) (l lists) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var tags struct {
		Models []struct {
			Name, Model, Digest string
			Capabilities        []string
			Details             struct {
				Family   string
				Families []string
			}
		}
	}
	switch err := b.read(ctx, "/api/tags", maxList, &tags); {
	case err == nil:
		l.installed = make(map[string]Installed, len(tags.Models))
		for _, m := range tags.Models {
			if name, ok := canonical(m.Model, m.Name); ok {
				l.installed[name] = Installed{Digest: m.Digest, Embeds: embeds(m.Capabilities, append(m.Details.Families, m.Details.Family))}
			}
		}
	default:
		l.keepInstalled = errors.Is(err, errSilent) || ctx.Err() != nil
	}
	var ps struct {
		Models []struct {
			Name, Model string
			Size        int64
			SizeVRAM    int64     `json:"size_vram"`
			Context     int64     `json:"context_length"`
			ExpiresAt   time.Time `json:"expires_at"`
		}
	}
	switch err := b.read(ctx, "/api/ps", maxList, &ps); {
	case err == nil:
		l.loaded = make(map[string]Loaded, len(ps.Models))
		for _, m := range ps.Models {
			if name, ok := canonical(m.Model, m.Name); ok {
				l.loaded[name] = Loaded{VRAM: m.SizeVRAM, Split: m.SizeVRAM > 0 && m.SizeVRAM < m.Size, Context: m.Context, Expires: m.ExpiresAt}
			}
		}
	default:
		l.keepLoaded = errors.Is(err, errSilent) || ctx.Err() != nil
	}
	return l
}

// canonical returns a listed name in the form in which requests are compared with it.
func canonical(model, name string) (string, bool) {
	if model == "" {
		model = name
	}
	m, _, err := api.ParseModel(model)
	return m.String(), err == nil
}

// embeds reports whether a model only makes embeddings. Ollama lists capabilities from 0.30 on. Before that, the family tells:
// models of the BERT families only make embeddings.
func embeds(capabilities, families []string) bool {
	if len(capabilities) > 0 {
		return slices.Contains(capabilities, "embedding") && !slices.Contains(capabilities, "completion")
	}
	return slices.ContainsFunc(families, func(f string) bool { return strings.Contains(f, "bert") })
}
