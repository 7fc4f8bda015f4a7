//go:build linux

package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// endured is what a sustained full load gave.
type endured struct {
	name              string // the contestant: service or before
	keys              int    // in turn
	span, drain       time.Duration
	answered, refused int
	rows, lost        int // rows in the database; answered requests without one
	drained           bool
	waiting           float64 // the most rows that were not in the database yet
	journal           float64 // the most bytes of the journal
	peak              int64   // bytes of resident memory
	cpu               float64 // µs for each answered request, with its booking
}

// enduredKeys are the numbers of keys in turn, the largest last.
func (w work) enduredKeys() []int { return []int{1, w.enduring / 8, w.enduring} }

// sustained sends small chats as fast as they are answered for a while and counts the rows of the database.
func (b *bench) sustained(int) error {
	if b.program == "" {
		return nil
	}
	counts := b.work.enduredKeys()
	most := counts[len(counts)-1]
	fmt.Printf("  making a database with %d keys\n", most)
	g := newGateway(b.program, filepath.Join(b.dir, "sustained"), b.mock.addr)
	keys, err := g.keysOf(most)
	if err != nil {
		return err
	}
	for _, n := range counts {
		one := *g
		one.dir = filepath.Join(b.dir, fmt.Sprintf("sustained-%d", n))
		if err := g.copyTo(&one); err != nil {
			return err
		}
		if err := b.endure(service, &one, keys[:n], n == most); err != nil {
			return fmt.Errorf("%d keys: %w", n, err)
		}
	}
	if b.commit == "" {
		return nil
	}
	g = newGateway(b.programBefore, filepath.Join(b.dir, "sustained-before"), b.mock.addr)
	if keys, err = g.keysOf(counts[1]); err != nil {
		return err
	}
	return b.endure(before, g, keys, false)
}

// endure starts the service on g and loads it. If whole is true, the CPU includes the work at the end of the load's last minute, when the
// service may write sums.
func (b *bench) endure(name string, g *gateway, keys []string, whole bool) error {
	e := endured{name: name, keys: len(keys), span: b.work.endure}
	p, err := g.start("sustained")
	if err != nil {
		return err
	}
	defer p.stop()
	if err := firstAnswer(p, keys[0]); err != nil {
		return err
	}
	file, err := database(g.data())
	if err != nil {
		return err
	}
	if _, err := g.drain(p, time.Minute); err != nil {
		return err
	}
	idle, err := p.quiet()
	if err != nil {
		return err
	}
	earlier, err := answeredRows(file)
	if err != nil {
		return err
	}
	progress(name, "%d keys, %v", e.keys, e.span)
	if err := b.load(p, g, keys, &e); err != nil {
		return err
	}
	begin := time.Now()
	if e.drained, err = g.drain(p, 2*time.Minute+e.span); err != nil {
		return err
	}
	e.drain = time.Since(begin)
	if whole && !b.work.short {
		time.Sleep(time.Until(begin.Truncate(time.Minute).Add(time.Minute + 5*time.Second)))
	}
	used, err := p.quiet()
	if err != nil {
		return err
	}
	e.cpu = float64(used-idle) / 1e3 / float64(max(1, e.answered))
	if e.peak, err = p.peak(); err != nil {
		return err
	}
	p.stop()
	rows, err := answeredRows(file)
	if err != nil {
		return err
	}
	e.rows = rows - earlier
	e.lost = e.answered - e.rows
	b.endured = append(b.endured, e)
	progress(name, "%s", strings.Join(e.cells(), " | "))
	return nil
}

// load is the load itself, in which another goroutine asks for the backlog.
func (b *bench) load(p *proc, g *gateway, keys []string, e *endured) error {
	l, err := dial(p.addr, b.work.rpsConns)
	if err != nil {
		return err
	}
	defer l.close()
	l.refused = func() { e.refused++ }
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			m, err := g.metrics(p)
			if err != nil {
				stopped <- err
				return
			}
			e.waiting = max(e.waiting, m["ollama_api_journal_waiting_rows"])
			e.journal = max(e.journal, m["ollama_api_journal_bytes"])
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(time.Second):
			}
		}
	}()
	r := plain(p, keys)
	n, took, err := l.closed(r.inTurn(nativePath, smallChat, len(keys)), 0, e.span, e.span+measureLimit)
	close(stop)
	if failed := <-stopped; err == nil {
		err = failed
	}
	e.answered, e.span = n-e.refused, took
	return err
}

// drain waits until all rows are in the database, and reports whether they are.
func (g *gateway) drain(p *proc, limit time.Duration) (bool, error) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		m, err := g.metrics(p)
		if err != nil {
			return false, err
		}
		if m["ollama_api_journal_waiting_rows"] == 0 {
			return true, nil
		}
	}
	return false, nil
}

// metrics reads the metrics without labels.
func (g *gateway) metrics(p *proc) (map[string]float64, error) {
	r, err := http.NewRequest("GET", "http://"+p.addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+g.admin)
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		return nil, fmt.Errorf("GET /metrics: %s", answer.Status)
	}
	all := map[string]float64{}
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				all[name] = v
			}
		}
	}
	if _, ok := all["ollama_api_journal_waiting_rows"]; !ok {
		return nil, fmt.Errorf("GET /metrics: no ollama_api_journal_waiting_rows")
	}
	return all, nil
}

// answeredRows counts the rows of answered requests in the database.
func answeredRows(file string) (n int, err error) {
	db, err := sql.Open("sqlite", "file:"+file+"?mode=ro")
	if err != nil {
		return 0, err
	}
	defer db.Close()
	return n, db.QueryRow(`SELECT count(*) FROM requests WHERE status = 200`).Scan(&n)
}

func (e *endured) cells() []string {
	drain := number(e.drain.Seconds())
	if !e.drained {
		drain = "not in " + drain
	}
	return []string{
		e.name, fmt.Sprint(e.keys), number(e.span.Seconds()), fmt.Sprint(e.answered), number(float64(e.answered) / e.span.Seconds()), fmt.Sprint(e.refused),
		fmt.Sprint(e.rows), fmt.Sprint(e.lost), number(float64(e.peak) / (1 << 20)), fmt.Sprintf("%.0f", e.waiting), number(e.journal / (1 << 20)), drain, number(e.cpu),
	}
}

// enduredReport writes the section about the sustained load.
func enduredReport(p func(string, ...any), all []endured) {
	if len(all) == 0 {
		return
	}
	head := []string{
		"", "keys in turn", "seconds", "answered", "a second", "503", "rows in the database", "rows lost", "peak memory, MiB", "most rows waiting",
		"largest journal, MiB", "time to drain, s", "CPU per request with its booking, µs",
	}
	p("## Sustained full load\n\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, e := range all {
		p("| %s |\n", strings.Join(e.cells(), " | "))
	}
	p("\n")
}

// lost is the largest number of rows that the service lost under the sustained load.
func lost(all []endured) (most int, measured bool) {
	own := slices.DeleteFunc(slices.Clone(all), func(e endured) bool { return e.name != service })
	for _, e := range own {
		most = max(most, e.lost)
		if !e.drained {
			most = max(most, int(e.waiting))
		}
	}
	return most, len(own) > 0
}
