package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// UsageQuery asks for the usage of the requests that match the filter, grouped by the dimensions of By: a row for each combination, the
// earliest hour, day, week or month first and, within it, the most requests first; at most Limit rows.
type UsageQuery struct {
	api.RequestFilter
	By    []api.Dimension
	Limit int
	Zone  *time.Location // the zone of days, weeks and months; nil means UTC
}

// Usage is the answer to a UsageQuery. Total and Groups include the groups beyond the limit. From and To are those of the query; if they
// cut a period of which only the sum is left, they are moved to its ends.
type Usage struct {
	Rows     []api.UsageGroup
	Total    api.Usage
	Groups   int64
	From, To time.Time
}

// Usage computes the answer from sums. The parts of a span that are not whole periods are computed from packs and from the tail.
func (s *Store) Usage(ctx context.Context, q UsageQuery) (Usage, error) {
	out := Usage{From: q.From, To: q.To}
	err := s.read(ctx, func(tx *sql.Tx) error {
		k, d, err := s.begin(ctx, tx)
		if err != nil {
			return err
		}
		tail, err := s.tail.in(ctx, tx, d, k.folded)
		if err != nil {
			return err
		}
		k.coverTail(tail)
		p, from, to, err := q.plan(k)
		if err != nil {
			return err
		}
		out.moved(&q.RequestFilter, k, from, to)
		if len(p.runs)+len(p.rows) == 0 {
			return nil
		}
		sheet := q.sheet(d)
		if err := p.fill(ctx, tx, d, tail, &sheet.chosen, sheet.take); err != nil {
			return err
		}
		sheet.answer(&q, &out)
		return nil
	})
	return out, err
}

// moved sets the actual start and end of the span if they differ from those of the filter.
func (u *Usage) moved(f *api.RequestFilter, k kept, from, to int64) {
	asked, until := span(f)
	if k.end > 0 && asked < max(k.rows, k.rollups) && from != max(asked, k.first) {
		u.From = instant(from)
	}
	if until >= 0 && until < k.rows && to > until {
		u.To = instant(to)
	}
}

func (u *used) usage() api.Usage {
	ms := func(i int) float64 { return float64(u[i]) / float64(time.Millisecond) }
	out := api.Usage{
		Requests: u[ofCount], PromptTokens: u[ofPrompt], CompletionTokens: u[ofCompletion], Estimated: u[ofEstimated],
		SlotMS: ms(ofSlot), GPUMS: ms(ofGPU), QueueMS: ms(ofQueue), BytesIn: u[ofIn], BytesOut: u[ofOut],
		AverageSeconds: average(u[ofTotal], u[ofTimed]), AverageFirstByte: average(u[ofFirstByte], u[ofFirstBytes]),
	}
	if u[ofCount] > 0 {
		last := instant(u[ofLast])
		out.LastRequest = &last
	}
	return out
}

// average is in seconds.
func average(ns, n int64) *float64 {
	if n == 0 {
		return nil
	}
	seconds := float64(ns) / float64(time.Second) / float64(n)
	return &seconds
}

// plan cuts the query's span into the parts that answer it.
func (q *UsageQuery) plan(k kept) (p plan, from, to int64, err error) {
	p = plan{kept: k, sources: k.sources(q.needs())}
	from, to = span(&q.RequestFilter)
	if to < 0 || to > k.end {
		to = k.end
	}
	from = max(from, k.first, k.rollups)
	if from >= to {
		return p, from, to, nil
	}
	byHour := slices.Contains(q.By, api.ByHour)
	if hours := p.sources[len(p.sources)-1]; byHour && hours.width != hourMS {
		from = max(from, k.rows) // there is no answer by hour for a time without hours
		if from >= to {
			return p, from, to, nil
		}
	}
	from, to = p.before(from), p.after(to)
	switch {
	case byHour:
		p.cutEach(hourMS, from, to)
	case !q.labelled():
		p.cut(from, to, ownTime)
	case slices.Contains(q.By, api.ByDay) && (q.Zone == nil || q.Zone == time.UTC):
		p.cutEach(dayMS, from, to)
	default:
		err = p.cutDates(q.By[slices.IndexFunc(q.By, api.Dimension.IsTime)], cmp.Or(q.Zone, time.UTC), from, to)
	}
	return p, from, to, err
}

// labelled reports whether groups are separated by time.
func (q *UsageQuery) labelled() bool { return slices.ContainsFunc(q.By, api.Dimension.IsTime) }

// mostRuns limits how many parts an answer has.
const mostRuns = 6000

// cutDates cuts [from, to) at the start of each day, week or month of a zone, as precisely as the data allows.
func (p *plan) cutDates(by api.Dimension, zone *time.Location, from, to int64) error {
	for at := by.Begin(time.UnixMilli(from).In(zone)); from < to; {
		next := by.Next(at)
		if !next.After(at) { // the loop would never end
			return fmt.Errorf("the %s after %v begins at %v", by, at, next)
		}
		end := min(p.before(millis(next)), to)
		p.cut(from, end, millis(at))
		from, at = max(from, end), next
		if len(p.runs)+len(p.rows) > mostRuns {
			return api.Errorf(api.CodeBadRequest, "too many days for a zone that is not UTC: choose a shorter time range, or leave the zone out")
		}
	}
	return nil
}

// needs returns the names that a sum must have to answer the query.
func (q *UsageQuery) needs() (needs kind) {
	for i, c := range api.Names {
		if len(*c.Filter(&q.RequestFilter)) > 0 || slices.Contains(q.By, api.Dimension(c.Name)) {
			needs |= 1 << i
		}
	}
	return needs
}

// take gets a part of an answer: usage of a key, or of all, and of a shape, at a time.
type take func(label, key, shape int64, u *used)

// fill reads the parts of a plan that match a filter.
func (p *plan) fill(ctx context.Context, tx *sql.Tx, d *dictionary, tail *batch, c *chosen, to take) error {
	if c.none {
		return nil
	}
	for _, r := range p.runs {
		if err := readSums(ctx, tx, r, c, to); err != nil {
			return err
		}
		if p.kept.old >= 0 && r.from >= p.kept.old {
			if err := readOldSums(ctx, tx, d, r, c, to); err != nil {
				return err
			}
		}
	}
	for _, r := range p.rows {
		if err := readRows(ctx, tx, r, c, to); err != nil {
			return err
		}
		if p.kept.old >= 0 && r.to > p.kept.old {
			if err := readOldRows(ctx, tx, d, &p.kept, r, c, to); err != nil {
				return err
			}
		}
	}
	p.fillTail(tail, c, to)
	return nil
}

// fillTail finds, for each row of the tail, the part of the plan that has its time.
func (p *plan) fillTail(tail *batch, c *chosen, to take) {
	type part struct{ from, to, label, width int64 }
	var parts []part
	for _, r := range p.runs {
		parts = append(parts, part{r.from, r.to, r.label, r.width})
	}
	for _, r := range p.rows {
		parts = append(parts, part{r.from, r.to, r.label, 0})
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.from, b.from) })
	for i, at := range tail.at {
		n, found := slices.BinarySearchFunc(parts, at, func(p part, at int64) int { return cmp.Compare(p.from, at) })
		if !found {
			n--
		}
		if n < 0 || at >= parts[n].to || !c.has(tail.key[i], tail.shape[i]) {
			continue
		}
		label := parts[n].label
		if label == ownTime {
			label = down(at, parts[n].width)
		}
		u := tail.used(i)
		to(label, tail.key[i], tail.shape[i], &u)
	}
}

func readSums(ctx context.Context, tx *sql.Tx, r run, c *chosen, to take) error {
	b := &builder{}
	query := `SELECT start, cells FROM sums WHERE kind = ` + b.param(int64(r.kind)) + ` AND width = ` + b.param(r.width) +
		` AND start >= ` + b.param(r.from) + ` AND start < ` + b.param(r.to) + c.parts(b)
	var start int64
	var text sql.RawBytes
	return rows(ctx, tx, query, func(row *sql.Rows) error {
		if err := row.Scan(&start, &text); err != nil {
			return err
		}
		label := r.label
		if label == ownTime {
			label = start
		}
		columns, n, err := unpack(text, 2+numbers)
		for i := range n {
			if key, shape := columns[0].at(i), columns[1].at(i); c.has(key, shape) {
				u := cellUsed(columns, i)
				to(label, key, shape, &u)
			}
		}
		return err
	}, b.args...)
}

func readRows(ctx context.Context, tx *sql.Tx, r stretch, c *chosen, to take) error {
	return readPacks(ctx, tx, `hour >= $1 AND hour < $2`, func(_ int64, p *packed) {
		first, last := p.between(r.from, r.to)
		for i := first; i < last; i++ {
			if key, shape := p.find[1].at(i), p.find[2].at(i); c.has(key, shape) {
				u := p.used(i)
				to(r.label, key, shape, &u)
			}
		}
	}, down(r.from, hourMS), r.to)
}

// between returns the entries of [from, to).
func (p *packed) between(from, to int64) (first, last int) {
	at := func(t int64) int {
		low, high := 0, p.n
		for low < high {
			if mid := (low + high) / 2; p.find[0].at(mid) < t {
				low = mid + 1
			} else {
				high = mid
			}
		}
		return low
	}
	return at(from), at(to)
}

// group is a row of an answer, by numbers.
type group struct{ label, key, name int64 }

// sheet adds up an answer.
type sheet struct {
	d        *dictionary
	chosen   chosen
	byKey    bool
	labelled bool
	name     []int64 // which shape stands for others that have the same names of the query
	groups   map[group]int
	list     []group
	used     []used
}

func (q *UsageQuery) sheet(d *dictionary) *sheet {
	var by kind
	for _, one := range q.By {
		by |= kindOf(one)
	}
	return &sheet{
		d: d, chosen: d.choose(&q.RequestFilter), byKey: by&byKey != 0, labelled: q.labelled(), name: d.project(by), groups: map[group]int{},
	}
}

func (s *sheet) take(label, key, shape int64, u *used) {
	at := group{name: s.name[shape]}
	if s.byKey {
		at.key = key
	}
	if s.labelled {
		at.label = label
	}
	n, ok := s.groups[at]
	if !ok {
		n = len(s.list)
		s.groups[at] = n
		s.list, s.used = append(s.list, at), append(s.used, used{})
	}
	s.used[n].add(u)
}

// answer writes the first groups.
func (s *sheet) answer(q *UsageQuery, out *Usage) {
	var total used
	order := make([]int, len(s.list))
	for i := range order {
		order[i] = i
		total.add(&s.used[i])
	}
	out.Total, out.Groups = total.usage(), int64(len(s.list))
	order = s.first(order, q.Limit)
	texts := make([][]string, len(order))
	names := func(at group) []string {
		var list []string
		for _, by := range q.By {
			switch k := kindOf(by); {
			case k == byKey:
				list = append(list, s.d.keys[at.key])
			case k != 0:
				list = append(list, s.d.shapes[at.name][slices.IndexFunc(shapeColumns, func(c *api.Column) bool { return c.Name == string(by) })])
			}
		}
		return list
	}
	rank := make([]int, len(order))
	for i, n := range order {
		texts[i], rank[i] = names(s.list[n]), i
	}
	slices.SortFunc(rank, func(i, j int) int {
		a, b := order[i], order[j]
		return cmp.Or(cmp.Compare(s.list[a].label, s.list[b].label), -cmp.Compare(s.used[a][ofCount], s.used[b][ofCount]),
			slices.Compare(texts[i], texts[j]))
	})
	for _, i := range rank[:min(q.Limit, len(rank))] {
		n := order[i]
		g := api.UsageGroup{Usage: s.used[n].usage()}
		names := texts[i]
		for _, by := range q.By {
			if name := g.Name(by); name != nil {
				*name, names = &names[0], names[1:]
				continue
			}
			start := instant(s.list[n].label)
			g.Start = &start
		}
		out.Rows = append(out.Rows, g)
	}
}

// first returns the groups among which the first limit ones are, so that not all of a long answer are sorted by their names.
func (s *sheet) first(order []int, limit int) []int {
	if len(order) <= limit {
		return order
	}
	less := func(a, b int) int {
		return cmp.Or(cmp.Compare(s.list[a].label, s.list[b].label), -cmp.Compare(s.used[a][ofCount], s.used[b][ofCount]))
	}
	slices.SortFunc(order, less)
	end := limit
	for end < len(order) && less(order[limit-1], order[end]) == 0 {
		end++
	}
	return order[:end]
}

// builder collects the parameters of a statement that is composed of constant pieces.
type builder struct{ args []any }

func (b *builder) param(v any) string {
	b.args = append(b.args, v)
	return placeholder(len(b.args))
}

// params adds several parameters, separated by commas.
func params[T any](b *builder, values []T) string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = b.param(v)
	}
	return strings.Join(list, ", ")
}

// within is the condition that column is in [from, to). A negative to means no end.
func (b *builder) within(column string, from, to int64) string {
	cond := column + " >= " + b.param(from)
	if to >= 0 {
		cond += " AND " + column + " < " + b.param(to)
	}
	return cond
}

// filter is the condition for the names in f, starting with AND. Keys are in r and the other names in s.
func (b *builder) filter(f *api.RequestFilter) string {
	cond := b.in("r.key", f.Keys)
	for _, c := range shapeColumns {
		cond += b.in("s."+c.Name, *c.Filter(f))
	}
	return cond
}

// in is the condition that column has one of the names, starting with AND. It is empty without names.
func (b *builder) in(column string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return " AND " + column + " IN (" + params(b, names) + ")"
}
