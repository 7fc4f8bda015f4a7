package main

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"ollama-api-service/internal/config"
)

const (
	// Go collects a small heap constantly: at 20,000 requests a second that took a fifth of the CPU. These bytes are never touched, so
	// they use no memory. They let the collector wait until about as much garbage exists.
	ballast = 64 << 20
	// besidesBodies is what the program uses in addition to MAX_BODY_MEMORY, as docs/deployment.md says. ofRuntime is the part of it that
	// counts towards the limit of the collector. The rest is for stacks, database pages and memory that is not returned yet.
	besidesBodies = 150 << 20
	ofRuntime     = 110 << 20
	// The collector keeps memory that it may need again: behind thousands of streams that have begun, as much as they use. While little is
	// allocated, it is returned to the system.
	lookForUnused = 5 * time.Second
	littleNew     = 40 << 20 // bytes allocated between two looks
	muchUnused    = 16 << 20
)

// returnUnused returns memory to the system that a burst of requests has left, until ctx ends.
func returnUnused(ctx context.Context) {
	now := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	tick := time.NewTicker(lookForUnused)
	defer tick.Stop()
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(now)
		allocated := now[0].Value.Uint64() - before
		before += allocated
		unused := int64(now[1].Value.Uint64()-now[2].Value.Uint64()) + int64(now[3].Value.Uint64())
		if allocated < littleNew && unused > muchUnused {
			debug.FreeOSMemory()
		}
	}
}

// boundMemory makes the collector keep the heap below what the bodies and the program need, or below the memory limit of the container if
// that is lower. In that case it warns, because the system may kill the process before the limit of the bodies takes effect. GOMEMLIMIT
// overrides it.
func boundMemory(cfg *config.Config, log *slog.Logger) {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 { // GOMEMLIMIT
		return
	}
	limit := int64(cfg.MaxBodyMemory) + ofRuntime
	if container, err := memlimit.FromCgroup(); err == nil && container < math.MaxInt64 {
		if most := int64(container); most < int64(cfg.MaxBodyMemory)+besidesBodies {
			log.Warn("the memory limit of this container is below MAX_BODY_MEMORY plus 150 MiB, so the system may kill the gateway: raise the limit, or lower MAX_BODY_MEMORY",
				"limit", most, "max_body_memory", int64(cfg.MaxBodyMemory))
			limit = min(limit, most/10*9)
		}
	}
	debug.SetMemoryLimit(limit + ballast)
}
