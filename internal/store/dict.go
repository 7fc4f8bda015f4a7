package store

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"sync"

	"ollama-api-service/internal/api"
)

// shapeColumns are the names that requests have in common, without the key. A shape is a combination of them.
var shapeColumns = api.Names[1:]

// mostNames is room for shapeColumns.
const mostNames = 8

type shape [mostNames]string

func shapeOf(r *api.Record) (s shape) {
	for i, c := range shapeColumns {
		s[i], _ = c.Stored(r).(string)
	}
	return s
}

var shapeNames = strings.Join(namesOf(shapeColumns), ", ")

func namesOf(columns []*api.Column) (names []string) {
	for _, c := range columns {
		names = append(names, c.Name)
	}
	return names
}

// dictionary has the keys and shapes by number. Neither ever changes, so it only grows.
type dictionary struct {
	keys   []string
	shapes []shape
	// The numbers, for writing.
	keyIDs   map[string]int64
	shapeIDs map[shape]int64

	projected sync.Map // of kinds
}

// dictionaries is the newest dictionary that was read.
type dictionaries struct {
	mu  sync.Mutex
	now *dictionary
}

// in returns a dictionary with everything that a transaction can see. Only committed transactions may call it before they write.
func (d *dictionaries) in(ctx context.Context, tx *sql.Tx) (*dictionary, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.now
	if old == nil {
		old = &dictionary{keys: []string{""}, shapes: []shape{{}}, keyIDs: map[string]int64{}, shapeIDs: map[shape]int64{}}
	}
	now := &dictionary{keys: old.keys, shapes: old.shapes}
	err := rows(ctx, tx, `SELECT id, name FROM names WHERE id >= $1 ORDER BY id`, func(r *sql.Rows) error {
		var id int
		var name string
		err := r.Scan(&id, &name)
		now.keys = append(append(now.keys, make([]string, id-len(now.keys))...), name)
		return err
	}, len(old.keys))
	if err != nil {
		return nil, err
	}
	err = rows(ctx, tx, `SELECT id, `+shapeNames+` FROM shapes WHERE id >= $1 ORDER BY id`, func(r *sql.Rows) error {
		var id int
		var s shape
		into := []any{&id}
		for i := range shapeColumns {
			into = append(into, &s[i])
		}
		err := r.Scan(into...)
		now.shapes = append(append(now.shapes, make([]shape, id-len(now.shapes))...), s)
		return err
	}, len(old.shapes))
	if err != nil {
		return nil, err
	}
	if len(now.keys) == len(old.keys) && len(now.shapes) == len(old.shapes) && d.now != nil {
		return d.now, nil
	}
	now.keyIDs, now.shapeIDs = make(map[string]int64, len(now.keys)), make(map[shape]int64, len(now.shapes))
	for id, name := range now.keys[1:] {
		now.keyIDs[name] = int64(id + 1)
	}
	for id, s := range now.shapes[1:] {
		now.shapeIDs[s] = int64(id + 1)
	}
	d.now = now
	return now, nil
}

// writing numbers keys and shapes in a transaction that may still fail, so what it adds is not in the dictionary yet.
type writing struct {
	known  *dictionary
	keys   map[string]int64
	shapes map[shape]int64
}

func (d *dictionary) writing() *writing { return &writing{d, map[string]int64{}, map[shape]int64{}} }

// dictionary returns what is known with what was added.
func (w *writing) dictionary() *dictionary {
	if len(w.shapes) == 0 {
		return w.known
	}
	d := &dictionary{shapes: slices.Clone(w.known.shapes)}
	for s, id := range w.shapes {
		d.shapes = append(d.shapes, make([]shape, max(0, int(id)+1-len(d.shapes)))...)
		d.shapes[id] = s
	}
	return d
}

func (w *writing) key(ctx context.Context, tx *sql.Tx, name string) (id int64, err error) {
	if id, ok := w.known.keyIDs[name]; ok {
		return id, nil
	}
	if id, ok := w.keys[name]; ok {
		return id, nil
	}
	// The update, which changes nothing, makes SQLite return the number of an existing name too.
	err = tx.QueryRowContext(ctx, `INSERT INTO names (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id`, name).Scan(&id)
	w.keys[name] = id
	return id, err
}

func (w *writing) shape(ctx context.Context, tx *sql.Tx, s shape) (id int64, err error) {
	if id, ok := w.known.shapeIDs[s]; ok {
		return id, nil
	}
	if id, ok := w.shapes[s]; ok {
		return id, nil
	}
	b := &builder{}
	err = tx.QueryRowContext(ctx, `INSERT INTO shapes (`+shapeNames+`) VALUES (`+params(b, s[:len(shapeColumns)])+`)
		ON CONFLICT (`+shapeNames+`) DO UPDATE SET `+shapeColumns[0].Name+` = excluded.`+shapeColumns[0].Name+` RETURNING id`, b.args...).Scan(&id)
	w.shapes[s] = id
	return id, err
}

// of returns the shape with only the names of a kind.
func (s shape) of(k kind) shape {
	for i := range s {
		if k&(2<<i) == 0 {
			s[i] = ""
		}
	}
	return s
}

// first returns, for the names of a kind, the first shape that has them: it stands for all of them.
func (d *dictionary) first(k kind) map[shape]int64 {
	first := map[shape]int64{}
	for id, s := range d.shapes {
		if s = s.of(k); first[s] == 0 && s != (shape{}) {
			first[s] = int64(id)
		}
	}
	return first
}

// project returns the first of each shape.
func (d *dictionary) project(k kind) []int64 {
	if known, ok := d.projected.Load(k); ok {
		return known.([]int64)
	}
	first, out := d.first(k), make([]int64, len(d.shapes))
	for id, s := range d.shapes {
		out[id] = first[s.of(k)]
	}
	d.projected.Store(k, out)
	return out
}

// chosen is a filter by numbers. A nil list selects all.
type chosen struct {
	keys   map[int64]bool
	shapes []bool
	none   bool
}

func (d *dictionary) choose(f *api.RequestFilter) (c chosen) {
	if len(f.Keys) > 0 {
		c.keys = map[int64]bool{}
		for _, name := range f.Keys {
			if id, ok := d.keyIDs[name]; ok {
				c.keys[id] = true
			}
		}
		c.none = len(c.keys) == 0
	}
	for i, column := range shapeColumns {
		names := *column.Filter(f)
		if len(names) == 0 {
			continue
		}
		if c.shapes == nil {
			c.shapes = slices.Repeat([]bool{true}, len(d.shapes))
		}
		for id, s := range d.shapes {
			c.shapes[id] = c.shapes[id] && slices.Contains(names, s[i])
		}
	}
	c.none = c.none || c.shapes != nil && !slices.Contains(c.shapes, true)
	return c
}

func (c *chosen) has(key, shape int64) bool {
	return (c.keys == nil || c.keys[key]) && (c.shapes == nil || c.shapes[shape])
}

// parts is the condition for the parts of the chosen keys, starting with AND.
func (c *chosen) parts(b *builder) string {
	if c.keys == nil {
		return ""
	}
	var list []int64
	for id := range c.keys {
		list = append(list, id/partKeys)
	}
	return " AND part IN (" + params(b, list) + ")"
}
