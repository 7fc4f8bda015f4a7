package store

import (
	"context"
	"database/sql"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"ollama-api-service/internal/api"
)

// A query about all keys reads every cell of a period, and fetching thousands of cells from the database costs more than adding them up.
// So the cells of recently queried periods stay in memory, one page for each period. Requests are only ever added, so a page is up to
// date as long as its period has no more requests than the page counts. The few cells by outcome report that number, whichever process
// added the requests.

const (
	mostCells = 400_000          // in memory, 45 MB
	pageTTL   = 15 * time.Minute // without access
	// A query that needs more periods would evict its own pages.
	mostPages = 800
	// lateMS is how much later than others a request may be written so that the page can still be updated without reading it from
	// scratch.
	lateMS = hourMS
)

// period is an hour or longer.
type period struct{ width, start int64 }

// pageID identifies a page by its kind and period.
type pageID struct {
	kind kind
	period
}

// pair is a key and, if the kind of the page has one, another name, as numbers.
type pair struct{ key, other uint32 }

// page is never modified once it is in the cache.
type page struct {
	pairs []pair
	used  []used
	sum   used
}

func newPage(n int) *page { return &page{pairs: make([]pair, 0, n), used: make([]used, 0, n)} }

func (p *page) add(at pair, u used) {
	p.pairs, p.used = append(p.pairs, at), append(p.used, u)
	p.sum.add(&u)
}

// pages are the pages in memory. Each name is stored once, however many cells use it.
type pages struct {
	cache *otter.Cache[pageID, *page]

	mu      sync.Mutex
	numbers map[string]uint32
	names   []string
}

func newPages() *pages {
	return &pages{
		cache: otter.Must(&otter.Options[pageID, *page]{
			MaximumWeight:    mostCells,
			Weigher:          func(_ pageID, p *page) uint32 { return uint32(len(p.pairs)) + 1 },
			ExpiryCalculator: otter.ExpiryAccessing[pageID, *page](pageTTL),
		}),
		numbers: map[string]uint32{},
	}
}

func (p *pages) number(name []byte) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.numbers[string(name)]
	if !ok {
		n = uint32(len(p.names))
		p.names = append(p.names, string(name))
		p.numbers[p.names[n]] = n
	}
	return n
}

// known returns all names by number. More may be added later.
func (p *pages) known() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.names
}

// paged reports whether pages can answer the query: it is about all keys and at most one other dimension.
func (q *UsageQuery) paged(p *plan) bool {
	needs := q.needs()
	others := needs &^ byKey
	filters := len(q.Keys) + len(q.Models) + len(q.Endpoints) + len(q.Backends) + len(q.Outcomes)
	if needs&byKey == 0 || others&(others-1) != 0 || filters > 0 {
		return false
	}
	n := int64(0)
	for _, r := range p.runs {
		n += (r.to - r.from) / r.width
	}
	return n <= mostPages
}

// leaf holds the parts of one time of a query: pages, and cells that were read separately.
type leaf struct {
	pages []pageID
	loose *page
}

// usageByPage answers q from pages, and reads parts finer than hours from the database.
func (s *Store) usageByPage(ctx context.Context, tx *sql.Tx, q *UsageQuery, p *plan, out *Usage) error {
	labelled := q.labelled()
	needs, fine, leaves := q.needs(), *p, map[int64]*leaf{}
	fine.runs = nil
	at := func(label int64) *leaf {
		if !labelled {
			label = 0
		}
		if leaves[label] == nil {
			leaves[label] = &leaf{loose: newPage(0)}
		}
		return leaves[label]
	}
	for id, label := range p.pages(needs, &fine) {
		l := at(label)
		l.pages = append(l.pages, id)
	}
	current, err := requestsIn(ctx, tx, p)
	if err == nil {
		err = s.looseCells(ctx, tx, needs, &fine, labelled, func(label int64, p pair, u used) { at(label).loose.add(p, u) })
	}
	if err != nil {
		return err
	}
	labels := make([]int64, 0, len(leaves))
	for label := range leaves {
		labels = append(labels, label)
	}
	slices.Sort(labels)
	sum := newSheet(q, labelled)
	for _, label := range labels {
		if err := s.addLeaf(ctx, tx, sum, leaves[label], current); err != nil {
			return err
		}
		sum.close(label, s.pages.known(), out)
	}
	out.Total = sum.total.usage()
	return nil
}

// pages returns the pages of a plan with the times that they belong to. Parts finer than hours go to rest.
func (p *plan) pages(needs kind, rest *plan) iter.Seq2[pageID, int64] {
	return func(yield func(pageID, int64) bool) {
		for _, r := range p.runs {
			if r.width < hourMS {
				rest.runs = append(rest.runs, r)
				continue
			}
			for start := r.from; start < r.to; start += r.width {
				label := r.label
				if label == ownTime {
					label = start
				}
				if !yield(pageID{needs, period{r.width, start}}, label) {
					return
				}
			}
		}
	}
}

// requestsIn returns the number of requests in each period of the plan of an hour or longer.
func requestsIn(ctx context.Context, tx *sql.Tx, p *plan) (map[period]int64, error) {
	counts, wide := map[period]int64{}, plan{}
	for _, r := range p.runs {
		if r.width >= hourMS {
			wide.runs = append(wide.runs, run{source{byOutcome, r.width, r.since}, r.from, r.to, r.label})
		}
	}
	if len(wide.runs) == 0 {
		return counts, nil
	}
	b := &builder{}
	with, query := wide.build(b, &api.RequestFilter{}, false, "u.width AS width, u.start AS start, u.count AS count", "")
	return counts, rows(ctx, tx, `WITH RECURSIVE `+with+` SELECT width, start, SUM(count) FROM (`+query+`) AS periods GROUP BY width, start`, func(r *sql.Rows) error {
		var at period
		var n int64
		err := r.Scan(&at.width, &at.start, &n)
		counts[at] = n
		return err
	}, b.args...)
}

// looseCells reads the cells and rows of the plan, grouped by time and pair.
func (s *Store) looseCells(ctx context.Context, tx *sql.Tx, needs kind, p *plan, labelled bool, take func(int64, pair, used)) error {
	if len(p.runs)+len(p.rows) == 0 {
		return nil
	}
	b := &builder{}
	names := "key, " + otherName(needs)
	with, query := p.build(b, &api.RequestFilter{}, labelled, names+" AS other, "+cellSums, names+" AS other, "+rowSums)
	label := "0"
	if labelled {
		label = "at"
	}
	return s.scanCells(ctx, tx, `WITH RECURSIVE `+with+` SELECT `+label+`, key, other, `+summed+` FROM (`+query+`) AS cells GROUP BY 1, 2, 3`, b.args, take)
}

func (s *Store) scanCells(ctx context.Context, tx *sql.Tx, query string, args []any, take func(int64, pair, used)) error {
	var label int64
	var key, other sql.RawBytes
	var u used
	dest := append([]any{&label, &key, &other}, u.into()...)
	return rows(ctx, tx, query, func(r *sql.Rows) error {
		if err := r.Scan(dest...); err != nil {
			return err
		}
		take(label, pair{s.pages.number(key), s.pages.number(other)}, u)
		return nil
	}, args...)
}

// otherName is the second column of a pair, or ” if there is none.
func otherName(k kind) string {
	for _, n := range []struct {
		kind   kind
		column string
	}{{byModel, "model"}, {byEndpoint, "endpoint"}, {byBackend, "backend"}, {byOutcome, "outcome"}} {
		if k&n.kind != 0 {
			return n.column
		}
	}
	return "''"
}

// addLeaf adds the pages and cells of one time to the sheet.
func (s *Store) addLeaf(ctx context.Context, tx *sql.Tx, sum *sheet, l *leaf, current map[period]int64) error {
	for _, id := range l.pages {
		p, err := s.page(ctx, tx, id, current)
		if err != nil {
			return err
		}
		sum.add(p)
	}
	sum.add(l.loose)
	return nil
}

// page returns the cells of a period: the page in memory, that page with newer requests added, or a new page.
func (s *Store) page(ctx context.Context, tx *sql.Tx, id pageID, current map[period]int64) (*page, error) {
	requests := current[id.period]
	if requests == 0 {
		return newPage(0), nil
	}
	old, ok := s.pages.cache.GetIfPresent(id)
	if ok && old.sum.count == requests {
		return old, nil
	}
	read := func(since int64) (*page, error) {
		p := newPage(0)
		query, args := id.query(since)
		return p, s.scanCells(ctx, tx, query, args, func(_ int64, at pair, u used) { p.add(at, u) })
	}
	var p *page
	var err error
	if ok {
		if p, err = read(old.sum.last - lateMS); err != nil {
			return nil, err
		}
		p = old.with(p)
	}
	// Requests that came later than lateMS are not in it: then read the whole page.
	if p == nil || p.sum.count != requests {
		if p, err = read(0); err != nil {
			return nil, err
		}
	}
	if !ok || p.sum.count > old.sum.count {
		s.pages.cache.Set(id, p)
	}
	return p, nil
}

// with returns a page with changed and new cells.
func (p *page) with(changed *page) *page {
	now := make(map[pair]int, len(changed.pairs))
	for i, at := range changed.pairs {
		now[at] = i
	}
	out := newPage(len(p.pairs) + len(changed.pairs))
	for i, at := range p.pairs {
		if _, ok := now[at]; !ok {
			out.add(at, p.used[i])
		}
	}
	for i, at := range changed.pairs {
		out.add(at, changed.used[i])
	}
	return out
}

// query reads the cells whose last request is not older than since. There are no sums by hour for a key with another name.
func (id pageID) query(since int64) (query string, args []any) {
	b := &builder{}
	names := "0, key, " + otherName(id.kind) + " AS other, "
	if id.width == hourMS && id.kind != byKey {
		return `SELECT ` + names + summed + ` FROM usage_period WHERE width = ` + b.param(id.width) + ` AND start = ` + b.param(id.start) +
			` GROUP BY key, other HAVING MAX(last_at) >= ` + b.param(since), b.args
	}
	return `SELECT ` + names + cellSums + ` FROM usage_sum AS u WHERE kind = ` + b.param(int64(id.kind)) + ` AND width = ` + b.param(id.width) +
		` AND start = ` + b.param(id.start) + ` AND last_at >= ` + b.param(since) + empty(id.kind), b.args
}
