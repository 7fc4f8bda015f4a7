package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"

	"ollama-api-service/internal/api"
)

// The lengths of the periods that have sums, in milliseconds. The offset of every time zone from UTC is a multiple of a quarter of an
// hour.
const (
	minuteMS  = 60_000
	quarterMS = 15 * minuteMS
	hourMS    = 60 * minuteMS
	dayMS     = 24 * hourMS
	// A year is at most 23 blocks and 30 days. Blocks of 8 or 32 days would need more in total.
	blockMS = 16 * dayMS
)

// kind is a set of dimensions. Cells of a kind are grouped by these and summed over the others.
type kind int64

const (
	byKey kind = 1 << iota
	byModel
	byEndpoint
	byBackend
	byOutcome
	byAll    = byKey | byOthers
	byOthers = byModel | byEndpoint | byBackend | byOutcome
)

// level is a kind of sum with one period length, and the finer level that it is computed from.
type level struct {
	kind      kind
	width     int64
	fromKind  kind
	fromWidth int64
}

// singles are the dimensions one by one, and pairs are the key with one other dimension.
var (
	singles = []kind{byKey, byModel, byEndpoint, byBackend, byOutcome}
	pairs   = []kind{byKey | byModel, byKey | byEndpoint, byKey | byBackend, byKey | byOutcome}
)

// foreverMS is the width of all-time sums, which are never deleted.
const foreverMS = 0

// levels are all levels except the first ones, by minute and byAll by hour. Each comes after the one that it is computed from. Blocks of
// byAll would be as many as days, so there are none. Queries by parts of hours read few cells, so those exist only for two kinds.
var levels = func() (all []level) {
	all = append(all,
		level{byKey, quarterMS, byKey, minuteMS}, level{byOthers, quarterMS, byOthers, minuteMS},
		level{byAll, dayMS, byAll, hourMS}, level{byOthers, hourMS, byAll, hourMS},
		level{byOthers, dayMS, byAll, dayMS}, level{byOthers, blockMS, byOthers, dayMS})
	for _, k := range singles {
		from := byOthers
		if k == byKey {
			from = byAll
		}
		all = append(all, level{k, hourMS, from, hourMS}, level{k, dayMS, from, dayMS}, level{k, blockMS, k, dayMS})
	}
	for _, k := range pairs {
		all = append(all, level{k, dayMS, byAll, dayMS}, level{k, blockMS, k, dayMS})
	}
	for _, k := range []kind{byKey, byKey | byModel, byKey | byEndpoint, byKey | byOutcome} {
		all = append(all, level{k, foreverMS, k, blockMS})
	}
	return all
}()

// cell identifies one row of usage_period (byAll) or of usage_sum.
type cell struct {
	kind                                  kind
	width, start                          int64
	key, model, endpoint, backend, result string
}

// compare orders cells by the primary keys of the tables.
func (c cell) compare(o cell) int {
	first := cmp.Or(cmp.Compare(c.kind, o.kind), cmp.Compare(c.width, o.width), cmp.Compare(c.start, o.start))
	if c.kind == byAll {
		first = cmp.Or(first, cmp.Compare(c.key, o.key))
	}
	return cmp.Or(first, cmp.Compare(c.model, o.model), cmp.Compare(c.endpoint, o.endpoint), cmp.Compare(c.backend, o.backend),
		cmp.Compare(c.result, o.result), cmp.Compare(c.key, o.key))
}

// as returns the cell of another level that contains c.
func (c cell) as(k kind, width int64) cell {
	c.kind, c.width, c.start = k, width, down(c.start, width)
	for _, n := range []struct {
		kind kind
		name *string
	}{{byKey, &c.key}, {byModel, &c.model}, {byEndpoint, &c.endpoint}, {byBackend, &c.backend}, {byOutcome, &c.result}} {
		if k&n.kind == 0 {
			*n.name = ""
		}
	}
	return c
}

// used is the usage in a cell.
type used struct {
	count, timed, firstBytes, prompt, completion, estimated, in, out, last int64
	total, firstByte, slot, gpu, queue                                     float64 // milliseconds
}

// usedBy returns the usage of one request.
func usedBy(r *api.Record) used {
	u := used{
		count: 1, prompt: r.PromptTokens, completion: r.CompletionTokens, estimated: flag(r.Estimated), in: r.BytesIn, out: r.BytesOut,
		last: millis(r.At), slot: milliseconds(r.Slot), gpu: milliseconds(max(r.GPU, 0)), queue: milliseconds(max(r.Queued, 0)),
	}
	if r.Total > 0 {
		u.timed, u.total = 1, milliseconds(r.Total)
	}
	if r.FirstByte > 0 {
		u.firstBytes, u.firstByte = 1, milliseconds(r.FirstByte)
	}
	return u
}

func (u *used) add(o *used) {
	u.count += o.count
	u.timed += o.timed
	u.firstBytes += o.firstBytes
	u.prompt += o.prompt
	u.completion += o.completion
	u.estimated += o.estimated
	u.in += o.in
	u.out += o.out
	u.last = max(u.last, o.last)
	u.total += o.total
	u.firstByte += o.firstByte
	u.slot += o.slot
	u.gpu += o.gpu
	u.queue += o.queue
}

// values returns the fields in the order of cellSums, and into returns pointers to them in the same order.
func (u *used) values() []any {
	return []any{
		u.count, u.timed, u.total, u.firstBytes, u.firstByte,
		u.prompt, u.completion, u.estimated, u.slot, u.in, u.out, u.last, u.gpu, u.queue,
	}
}

func (u *used) into() []any {
	return []any{
		&u.count, &u.timed, &u.total, &u.firstBytes, &u.firstByte,
		&u.prompt, &u.completion, &u.estimated, &u.slot, &u.in, &u.out, &u.last, &u.gpu, &u.queue,
	}
}

// cells are the sums over the rows of one transaction.
type cells map[cell]*used

// add counts one row. minutes is the time from which on sums by minute exist.
func (c cells) add(r *api.Record, minutes int64) {
	u := usedBy(r)
	id := cell{byAll, hourMS, u.last, r.Key, r.Model, r.Endpoint, r.Backend, string(r.Outcome)}
	c.at(id.as(byAll, hourMS)).add(&u)
	for _, k := range []kind{byKey, byOthers} {
		width := int64(minuteMS)
		if u.last < minutes {
			width = quarterMS // a sum by minute would be deleted again
		}
		c.at(id.as(k, width)).add(&u)
	}
}

func (c cells) at(id cell) *used {
	u := c[id]
	if u == nil {
		u = new(used)
		c[id] = u
	}
	return u
}

// sumUp computes the other levels from the first ones: a transaction has thousands of rows, but few hours.
func (c cells) sumUp() {
	type family struct {
		kind  kind
		width int64
	}
	members := map[family][]cell{}
	for id := range c {
		f := family{id.kind, id.width}
		members[f] = append(members[f], id)
	}
	for _, l := range levels {
		own := family{l.kind, l.width}
		for _, from := range members[family{l.fromKind, l.fromWidth}] {
			id := from.as(l.kind, l.width)
			if c[id] == nil {
				members[own] = append(members[own], id)
			}
			c.at(id).add(c[from])
		}
	}
}

// save adds the sums to the tables in the order of their keys, so that two processes that write at the same time lock rows in the same
// order and cannot deadlock.
func (c cells) save(ctx context.Context, tx *sql.Tx) error {
	c.sumUp()
	whole, err := tx.PrepareContext(ctx, addCells("usage_period", "width, start, key, model, endpoint, backend, outcome"))
	if err != nil {
		return err
	}
	defer whole.Close()
	part, err := tx.PrepareContext(ctx, addCells("usage_sum", "kind, width, start, model, endpoint, backend, outcome, key"))
	if err != nil {
		return err
	}
	defer part.Close()
	for _, id := range slices.SortedFunc(maps.Keys(c), cell.compare) {
		add, names := part, []any{int64(id.kind), id.width, id.start, id.model, id.endpoint, id.backend, id.result, id.key}
		if id.kind == byAll {
			add, names = whole, []any{id.width, id.start, id.key, id.model, id.endpoint, id.backend, id.result}
		}
		if _, err := add.ExecContext(ctx, append(names, c[id].values()...)...); err != nil {
			return err
		}
	}
	return nil
}

// addCells returns the statement that adds one cell to a table with this key.
func addCells(table, key string) string {
	var params, updates []string
	for range strings.Split(key+", "+cellSums, ", ") {
		params = append(params, placeholder(len(params)+1))
	}
	for column := range strings.SplitSeq(cellSums, ", ") {
		if column == "last_at" {
			updates = append(updates, `last_at = CASE WHEN excluded.last_at > `+table+`.last_at THEN excluded.last_at ELSE `+table+`.last_at END`)
			continue
		}
		updates = append(updates, column+" = "+table+"."+column+" + excluded."+column)
	}
	return `INSERT INTO ` + table + ` (` + key + `, ` + cellSums + `) VALUES (` + strings.Join(params, ", ") + `)
		ON CONFLICT (` + key + `) DO UPDATE SET ` + strings.Join(updates, ", ")
}
