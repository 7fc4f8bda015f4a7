package backend

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	probeEvery   = 5 * time.Second
	retryEvery   = time.Second // while a server is not healthy, or requests to it fail
	mostFailures = 3           // failed requests in a row before a server gets no more
	reviveEvery  = 100 * time.Millisecond
	reviveTime   = 40 * time.Millisecond // how long a request without a server waits before it fails
)

// Probe asks a server for its state and updates the fleet.
func (f *Fleet) Probe(ctx context.Context, b *Backend) State {
	before := b.State()
	now := b.Probe(ctx)
	f.compare(before, now)
	return now
}

// ProbeAll probes all servers at the same time.
func (f *Fleet) ProbeAll(ctx context.Context) {
	var running sync.WaitGroup
	for _, b := range f.All() {
		running.Go(func() { f.Probe(ctx, b) })
	}
	running.Wait()
}

// compare refreshes the fleet if the change can affect a request.
func (f *Fleet) compare(before, now State) {
	same := before.Healthy == now.Healthy && before.Draining == now.Draining && before.Version == now.Version &&
		(before.Installed == nil) == (now.Installed == nil) && maps.Equal(before.Installed, now.Installed) &&
		(before.Loaded == nil) == (now.Loaded == nil) && maps.EqualFunc(before.Loaded, now.Loaded, func(Loaded, Loaded) bool { return true })
	if !same {
		f.Refresh()
	}
}

// Watch probes every server until ctx ends, including servers that are added later, and excluding removed ones. It calls onHealth
// for each change of a server's health, no matter what found it. Watch returns when the last probe has ended.
func (f *Fleet) Watch(ctx context.Context, onHealth func(*Backend, State)) {
	var running sync.WaitGroup
	f.mu.Lock()
	f.onHealth = onHealth
	f.watch = func(b *Backend) (stop context.CancelFunc) {
		own, stop := context.WithCancel(ctx)
		running.Go(func() { f.watchOne(own, b, onHealth) })
		return stop
	}
	for _, b := range f.list {
		f.watched[b] = f.watch(b)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.watch = nil // servers that are added from here on are not watched
	for b, stop := range f.watched {
		stop()
		delete(f.watched, b)
	}
	f.mu.Unlock()
	running.Wait()
}

func (f *Fleet) watchOne(ctx context.Context, b *Backend, onHealth func(*Backend, State)) {
	defer b.client.CloseIdleConnections()
	for {
		probed := time.Now()
		every := probeEvery
		if !b.State().Healthy {
			every = retryEvery
		}
		// Jitter keeps several gateways from probing at the same moment.
		timer := time.NewTimer(every + time.Duration(rand.Int64N(int64(every/5)))) //nolint:gosec // jitter is no secret
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-b.wake:
			timer.Reset(max(0, retryEvery-time.Since(probed)))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		before := b.State().Healthy
		if s := f.Probe(ctx, b); ctx.Err() == nil && s.Healthy != before {
			onHealth(b, s)
		}
	}
}

// Failed notes that a request could not reach b, or that b broke it off. After three failures in a row, b gets no more requests
// until a probe finds it healthy; Failed asks for that probe at once. The last healthy server is an exception: it stays when it
// breaks requests off, because there is no better one. If it refuses a connection, it is out at once, so that other requests fail
// without an attempt of their own. A client that leaves is not a failure.
func (f *Fleet) Failed(b *Backend, refused bool) {
	failures := b.failures.Add(1)
	select {
	case b.wake <- struct{}{}:
	default: // a probe has been requested already
	}
	last := f.Healthy() <= 1
	if last && !refused || !last && failures < mostFailures {
		return
	}
	before, now := b.change(func(s *State) {
		s.Healthy, s.Reason, s.usual = false, "requests did not reach it, or it broke them off", nil
	})
	if !before.Healthy {
		return
	}
	f.Refresh()
	f.mu.Lock()
	onHealth := f.onHealth
	f.mu.Unlock()
	if onHealth != nil {
		onHealth(b, now)
	}
}

// Revive probes the unhealthy servers again, at most ten times a second, and reports whether any server is healthy then. It is for
// requests that no other server can take: a server may fail and recover between two probes. A fleet of one server is not probed
// again, because a refused connection is its answer.
func (f *Fleet) Revive(ctx context.Context) bool {
	if len(f.All()) == 1 {
		return false
	}
	f.reviving.Lock()
	defer f.reviving.Unlock()
	if time.Since(f.revived) >= reviveEvery {
		ctx, cancel := context.WithTimeout(ctx, reviveTime)
		defer cancel()
		var running sync.WaitGroup
		for _, b := range f.All() {
			if !b.State().Healthy {
				running.Go(func() { f.Probe(ctx, b) })
			}
		}
		running.Wait()
		f.revived = time.Now()
	}
	return f.Healthy() > 0
}

// Answered notes that a request was served.
func (b *Backend) Answered() {
	if b.failures.Load() != 0 { // this is on the path of every request, and most have nothing to write
		b.failures.Store(0)
	}
}

// Bound changes the bounds of b.
func (f *Fleet) Bound(b *Backend, bounds Bounds) {
	b.bounds.Store(&bounds)
	f.Refresh() // waiting requests may have room now
}

// Drain sets whether b gets no new requests.
func (f *Fleet) Drain(b *Backend, drain bool) {
	before, now := b.change(func(s *State) { s.Draining = drain })
	f.compare(before, now)
}

// Reread asks b for its models again, after they were changed.
func (f *Fleet) Reread(ctx context.Context, b *Backend) {
	found := b.lists(ctx)
	before, now := b.change(found.into)
	f.compare(before, now)
}

// Find reports whether a server may have the model. Before it returns false, it asks each server again, at most once a second,
// because the model may have been added without the gateway.
func (f *Fleet) Find(ctx context.Context, model string) bool {
	if f.Has(model) {
		return true
	}
	f.readingLists.Lock()
	defer f.readingLists.Unlock()
	if time.Since(f.listsRead) >= retryEvery {
		var running sync.WaitGroup
		for _, b := range f.All() {
			if b.State().Healthy {
				running.Go(func() { f.Reread(ctx, b) })
			}
		}
		running.Wait()
		f.listsRead = time.Now()
	}
	return f.Has(model)
}
