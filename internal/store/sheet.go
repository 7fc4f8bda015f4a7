package store

import (
	"cmp"
	"database/sql"
	"slices"
	"strings"

	"ollama-api-service/internal/api"
)

// sheet adds up pages, one time label after another.
type sheet struct {
	by       []api.Dimension
	limit    int
	labelled bool
	total    used
	pages    []*page // of the current time
	// For times with several pages.
	groups map[pair]int
	pairs  []pair
	used   []used
}

func newSheet(q *UsageQuery, labelled bool) *sheet {
	return &sheet{by: q.By, limit: q.Limit, labelled: labelled, groups: map[pair]int{}}
}

func (s *sheet) add(p *page) {
	if len(p.pairs) > 0 {
		s.pages = append(s.pages, p)
		s.total.add(&p.sum)
	}
}

// close ends a time: its groups are added to the answer, the largest first, up to the limit.
func (s *sheet) close(label int64, names []string, out *Usage) {
	current := s.pages
	s.pages = s.pages[:0]
	room := s.limit - len(out.Rows)
	if len(current) == 1 {
		out.Groups += int64(len(current[0].pairs))
		if room > 0 {
			s.show(label, names, current[0].pairs, current[0].used, room, out)
		}
		return
	}
	clear(s.groups)
	s.pairs, s.used = s.pairs[:0], s.used[:0]
	for _, p := range current {
		for i, at := range p.pairs {
			n, ok := s.groups[at]
			if !ok {
				n = len(s.pairs)
				s.groups[at] = n
				s.pairs, s.used = append(s.pairs, at), append(s.used, used{})
			}
			s.used[n].add(&p.used[i])
		}
	}
	out.Groups += int64(len(s.pairs))
	if room > 0 {
		s.show(label, names, s.pairs, s.used, room, out)
	}
}

func (s *sheet) show(label int64, names []string, shown []pair, sums []used, room int, out *Usage) {
	// In the order in which the query names the dimensions.
	keyFirst := slices.IndexFunc(s.by, func(d api.Dimension) bool { return !d.IsTime() }) == slices.Index(s.by, api.ByKey)
	order := make([]int, len(shown))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		if c := cmp.Compare(sums[j].count, sums[i].count); c != 0 {
			return c
		}
		key, other := strings.Compare(names[shown[i].key], names[shown[j].key]), strings.Compare(names[shown[i].other], names[shown[j].other])
		if keyFirst {
			return cmp.Or(key, other)
		}
		return cmp.Or(other, key)
	})
	for _, i := range order[:min(room, len(order))] {
		g := api.UsageGroup{Usage: sums[i].usage()}
		start := sql.NullInt64{Int64: label, Valid: s.labelled}
		for _, d := range s.by {
			switch at := place(&g, d, &start).(type) {
			case **string:
				name := names[shown[i].other]
				if d == api.ByKey {
					name = names[shown[i].key]
				}
				*at = &name
			}
		}
		g.Start = nullInstant(start)
		out.Rows = append(out.Rows, g)
	}
}
