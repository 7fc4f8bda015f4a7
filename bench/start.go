//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"time"
)

// startup measures a start on an empty directory, and one on a directory that has data.
func (b *bench) startup(round int) error {
	if b.program == "" {
		return nil
	}
	g := newGateway(b.program, filepath.Join(b.dir, fmt.Sprintf("start-%d", round)), b.mock.addr)
	begin := time.Now()
	p, err := g.start("first")
	if err != nil {
		return err
	}
	b.figures.add(firstStart, service, time.Since(begin).Seconds()*1e3)
	key, err := g.newKey(p.addr, "bench")
	p.stop()
	if err != nil {
		return err
	}
	begin = time.Now()
	if p, err = g.launch("again"); err != nil {
		return err
	}
	defer p.stop()
	if err := firstAnswer(p, key); err != nil {
		return err
	}
	took := time.Since(begin)
	rss, err := settledRSS(p)
	if err != nil {
		return err
	}
	b.figures.add(nextStart, service, took.Seconds()*1e3)
	b.figures.add(idleMemory, service, float64(rss)/(1<<20))
	progress(service, "%.0f ms from start to the first answered chat, then %.1f MiB", took.Seconds()*1e3, float64(rss)/(1<<20))
	return nil
}
