//go:build linux

package main

import "fmt"

// chunks measures the CPU of streamed records, each stream's request included.
func (b *bench) chunks(round int) error {
	b.each(round, "chunks", b.chunksOf, direct)
	return nil
}

func (b *bench) chunksOf(name string, r *running) error {
	l, err := dial(r.addr, b.work.streams)
	if err != nil {
		return err
	}
	defer l.close()
	var s streamed
	us, err := cpuOf(r.proc, func() (int, error) {
		s, err = l.stream(b.stream(r, b.work.chunks), measureLimit)
		if b.peers {
			s.records /= 2 // an event ends with an empty line
		}
		// With OpenAI's API there is a last event without a record.
		if want := b.work.streams * b.work.chunks; err == nil && (s.records < want || s.records > want && !b.peers) {
			err = fmt.Errorf("%d records arrived of %d", s.records, want)
		}
		return s.records, err
	})
	if err != nil {
		return err
	}
	alone := 100 * float64(s.reads) / float64(s.records)
	rate := float64(s.records) / (s.took - think).Seconds()
	if name != direct {
		b.figures.add(chunkCPU, name, us)
	}
	b.figures.add(chunkRate, name, rate/1e3)
	b.figures.add(chunkAlone, name, alone)
	progress(name, "%.2f us of CPU per chunk, %.0f chunks/s, %.0f %% in a read of their own", us, rate, alone)
	return nil
}

// idle measures the memory of streams that wait for their next record, on a process that has done little work before.
func (b *bench) idle(round int) error {
	b.eachFresh(round, "idle streams", func(name string, r *running) error {
		before, err := settledAfterSome(r)
		if err != nil {
			return err
		}
		l, err := dial(r.addr, b.work.idle)
		if err != nil {
			return err
		}
		defer l.close()
		if err := l.hold(r.first(fmt.Sprintf(streamChat, 0)), 64, measureLimit); err != nil {
			return err
		}
		after, err := settledRSS(r.proc)
		if err != nil {
			return err
		}
		kib := float64(after-before) / float64(b.work.idle) / 1024
		b.figures.add(idleStream, name, kib)
		progress(name, "%.1f KiB per idle stream (%.1f -> %.1f MiB)", kib, float64(before)/(1<<20), float64(after)/(1<<20))
		return nil
	})
	return nil
}

// settledAfterSome is the resident memory after 200 small chats, once the process is quiet.
func settledAfterSome(r *running) (int64, error) {
	warm, err := dial(r.addr, 8)
	if err != nil {
		return 0, err
	}
	defer warm.close()
	request := r.first(smallChat)
	if _, _, err := warm.closed(func() []byte { return request }, 200, 0, measureLimit); err != nil {
		return 0, err
	}
	return settledRSS(r.proc)
}

// settledRSS is the resident memory once the process is quiet.
func settledRSS(p *proc) (int64, error) {
	if _, err := p.quiet(); err != nil {
		return 0, err
	}
	return p.rss()
}
