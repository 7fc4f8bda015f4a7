package main

import (
	"log/slog"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"ollama-api-service/internal/config"
)

const (
	// A small heap is collected all the time: at 20,000 requests a second that was a fifth of the CPU. These bytes are never touched, so
	// they cost no memory; they let the collector wait until about as much has been thrown away.
	ballast = 64 << 20
	// besidesBodies is what the program takes in addition to MAX_BODY_MEMORY, as docs/deployment.md says, and ofRuntime the part of it that
	// the collector works hard to keep to. The rest is for stacks, the database's pages and what is not yet returned.
	besidesBodies = 150 << 20
	ofRuntime     = 110 << 20
)

// boundMemory has the collector keep the heap below what the bodies may have and the program needs, or below the memory limit of the
// container where that is less, and says so if it is: then a kill may come before the bound of the bodies does. GOMEMLIMIT wins.
func boundMemory(cfg *config.Config, log *slog.Logger) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 { // GOMEMLIMIT
		return
	}
	limit := int64(cfg.MaxBodyMemory) + ofRuntime
	if container, err := memlimit.FromCgroup(); err == nil && container < math.MaxInt64 {
		if most := int64(container); most < int64(cfg.MaxBodyMemory)+besidesBodies {
			log.Warn("the memory limit of this container is below MAX_BODY_MEMORY and 150 MiB together, so the system may end the gateway: raise the limit, or lower MAX_BODY_MEMORY",
				"limit", most, "max_body_memory", int64(cfg.MaxBodyMemory))
			limit = min(limit, most/10*9)
		}
	}
	debug.SetMemoryLimit(limit + ballast)
}
