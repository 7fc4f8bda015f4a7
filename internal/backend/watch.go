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
	mostFailures = 3           // of requests in a row, and a server gets no more
	reviveEvery  = 100 * time.Millisecond
	reviveTime   = 40 * time.Millisecond // a request for which no server is left waits no longer to hear so
)

// Probe asks a server how it is, and lets the fleet know.
func (f *Fleet) Probe(ctx context.Context, b *Backend) State {
	before := b.State()
	now := b.Probe(ctx)
	f.compare(before, now)
	return now
}

// ProbeAll asks every server at the same time.
func (f *Fleet) ProbeAll(ctx context.Context) {
	var running sync.WaitGroup
	for _, b := range f.All() {
		running.Go(func() { f.Probe(ctx, b) })
	}
	running.Wait()
}

// compare refreshes the fleet where a request could fare otherwise than before.
func (f *Fleet) compare(before, now State) {
	same := before.Healthy == now.Healthy && before.Draining == now.Draining && before.Version == now.Version &&
		(before.Installed == nil) == (now.Installed == nil) && maps.Equal(before.Installed, now.Installed) &&
		(before.Loaded == nil) == (now.Loaded == nil) && maps.EqualFunc(before.Loaded, now.Loaded, func(Loaded, Loaded) bool { return true })
	if !same {
		f.Refresh()
	}
}

// Watch probes every server until ctx ends: those that are added too, and not those that were removed. told is called for each
// change of a server's health, whoever found it. Watch returns when no probe runs any more.
func (f *Fleet) Watch(ctx context.Context, told func(*Backend, State)) {
	var running sync.WaitGroup
	f.mu.Lock()
	f.told = told
	f.watch = func(b *Backend) (stop context.CancelFunc) {
		own, stop := context.WithCancel(ctx)
		running.Go(func() { f.watchOne(own, b, told) })
		return stop
	}
	for _, b := range f.list {
		f.watched[b] = f.watch(b)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.watch = nil // who is added from here on is watched by nobody
	for b, stop := range f.watched {
		stop()
		delete(f.watched, b)
	}
	f.mu.Unlock()
	running.Wait()
}

func (f *Fleet) watchOne(ctx context.Context, b *Backend, told func(*Backend, State)) {
	defer b.client.CloseIdleConnections()
	for {
		probed := time.Now()
		every := probeEvery
		if !b.State().Healthy {
			every = retryEvery
		}
		// Jitter keeps many gateways from probing in step.
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
			told(b, s)
		}
	}
}

// Failed notes that a request could not be brought to b, or was broken off by it. Three in a row, and it gets no more until a
// probe finds it well, which is asked for at once. The last server that is well is another matter: what it breaks off does not take
// it away, for there is no better one; but where it refuses a connection, everybody is told at once instead of trying for
// themselves. A client that leaves is no failure.
func (f *Fleet) Failed(b *Backend, refused bool) {
	failures := b.failures.Add(1)
	select {
	case b.wake <- struct{}{}:
	default: // it is asked for already
	}
	last := f.Healthy() <= 1
	if last && !refused || !last && failures < mostFailures {
		return
	}
	before, now := b.change(func(s *State) {
		s.Healthy, s.Reason, s.usual = false, "requests could not be brought to it, or were broken off", nil
	})
	if !before.Healthy {
		return
	}
	f.Refresh()
	f.mu.Lock()
	told := f.told
	f.mu.Unlock()
	if told != nil {
		told(b, now)
	}
}

// Revive asks those that are down once more, at most ten times in a second, and says whether any came back: for a request that no
// other server is left for. One after the other may have failed and come back between two probes. One server alone is not asked: that
// it refuses a connection is an answer.
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
	if b.failures.Load() != 0 { // on the way of every request: most have nothing to write
		b.failures.Store(0)
	}
}

// Bound changes what b may be given.
func (f *Fleet) Bound(b *Backend, bounds Bounds) {
	b.bounds.Store(&bounds)
	f.Refresh() // there may be room for who waits
}

// Drain says whether b gets no new request from now on.
func (f *Fleet) Drain(b *Backend, drain bool) {
	before, now := b.change(func(s *State) { s.Draining = drain })
	f.compare(before, now)
}

// Reread asks b for its models again: they were changed.
func (f *Fleet) Reread(ctx context.Context, b *Backend) {
	found := b.lists(ctx)
	before, now := b.change(found.into)
	f.compare(before, now)
}

// Find says whether a server may have the model. Before it says no, it asks each of them once more, at most once in a second: the
// model may have come there by another way than ours.
func (f *Fleet) Find(ctx context.Context, model string) bool {
	if f.Has(model) {
		return true
	}
	f.seeking.Lock()
	defer f.seeking.Unlock()
	if time.Since(f.sought) >= retryEvery {
		var running sync.WaitGroup
		for _, b := range f.All() {
			if b.State().Healthy {
				running.Go(func() { f.Reread(ctx, b) })
			}
		}
		running.Wait()
		f.sought = time.Now()
	}
	return f.Has(model)
}
