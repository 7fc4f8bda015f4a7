package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"maps"
	"math/bits"
	"slices"

	"ollama-api-service/internal/api"
)

// Many requests, or many sums, are stored as columns of numbers. A column has a base, which is its least number, and for each entry the
// difference from the base, in the number of bytes that the greatest one needs. So an entry is found without reading those before it.

// sumColumns are the columns that are added up, and sumCount is their number.
var sumColumns = slices.DeleteFunc(slices.Clone(api.Columns), func(c *api.Column) bool { return !c.Sum || c.Derived })

const sumCount = 10

// The numbers of a sum. Those from sums on are those of sumColumns.
const (
	ofCount      = iota // requests
	ofTimed             // requests with a known duration
	ofFirstBytes        // requests with a first byte
	ofLast              // when the last one was admitted, in milliseconds
	sums
	numbers = sums + sumCount
)

// used is what a group of requests used. Durations are in nanoseconds.
type used [numbers]int64

var (
	ofPrompt, ofCompletion, ofEstimated = sumOf("prompt_tokens"), sumOf("completion_tokens"), sumOf("estimated")
	ofFirstByte, ofTotal, ofSlot        = sumOf("ttfb_ms"), sumOf("total_ms"), sumOf("slot_ms")
	ofIn, ofOut, ofGPU, ofQueue         = sumOf("bytes_in"), sumOf("bytes_out"), sumOf("gpu_ms"), sumOf("queue_ms")
)

func sumOf(name string) int {
	if len(sumColumns) != sumCount {
		panic("store: sumCount is not the number of summed columns")
	}
	return sums + slices.IndexFunc(sumColumns, func(c *api.Column) bool { return c.Name == name })
}

func (u *used) add(o *used) {
	last := max(u[ofLast], o[ofLast])
	for i := range u {
		u[i] += o[i]
	}
	u[ofLast] = last
}

// one returns the usage of one request.
func one(at int64, amounts *[sumCount]int64) (u used) {
	u[ofCount], u[ofLast] = 1, at
	copy(u[sums:], amounts[:])
	if u[ofTotal] > 0 {
		u[ofTimed] = 1
	}
	if u[ofFirstByte] > 0 {
		u[ofFirstBytes] = 1
	}
	return u
}

// packedColumn is an encoded column.
type packedColumn struct {
	data  []byte // with at least eight bytes after its last entry
	base  int64
	width int
	mask  uint64
}

func (c *packedColumn) at(i int) int64 {
	return c.base + int64(binary.LittleEndian.Uint64(c.data[i*c.width:])&c.mask)
}

const packForm = 1

// pack encodes columns of equal length.
func pack(columns ...[]int64) []byte {
	n := len(columns[0])
	head := binary.AppendUvarint(binary.AppendUvarint([]byte{packForm}, uint64(n)), uint64(len(columns)))
	size := 0
	widths := make([]int, len(columns))
	for i, c := range columns {
		least, most := slices.Min(c), slices.Max(c)
		widths[i] = (bits.Len64(uint64(most-least)) + 7) / 8
		head = append(binary.AppendVarint(head, least), byte(widths[i]))
		size += widths[i] * n
	}
	out := make([]byte, len(head)+size+8)
	at := copy(out, head)
	for i, c := range columns {
		base := slices.Min(c)
		for _, v := range c {
			for d, k := uint64(v-base), 0; k < widths[i]; k++ {
				out[at+k] = byte(d >> (8 * k))
			}
			at += widths[i]
		}
	}
	return out
}

var errPack = errors.New("usage in the database is damaged")

// unpack returns the columns, of which there must be as many as wanted, and their length.
func unpack(b []byte, want int) (columns []packedColumn, n int, err error) {
	if len(b) < 1 || b[0] != packForm {
		return nil, 0, errPack
	}
	at := 1
	number := func() uint64 {
		v, size := binary.Uvarint(b[min(at, len(b)):])
		at += max(size, 1)
		return v
	}
	length, count := number(), number()
	if count != uint64(want) || length > uint64(len(b))*8 {
		return nil, 0, errPack
	}
	columns = make([]packedColumn, want)
	for i := range columns {
		base, size := binary.Varint(b[min(at, len(b)):])
		if at += max(size, 1); at >= len(b) || b[at] > 8 {
			return nil, 0, errPack
		}
		w := int(b[at])
		columns[i] = packedColumn{base: base, width: w, mask: 1<<(8*w) - 1}
		at++
	}
	n = int(length)
	for i := range columns {
		if columns[i].data = b[min(at, len(b)):]; columns[i].width*n+8 > len(columns[i].data) {
			return nil, 0, errPack
		}
		at += columns[i].width * n
	}
	return columns, n, nil
}

// batch has requests by columns.
type batch struct {
	n, at, key, shape []int64
	amounts           [sumCount][]int64
}

func (b *batch) len() int { return len(b.at) }

func (b *batch) add(n, at, key, shape int64, amounts *[sumCount]int64) {
	b.n, b.at, b.key, b.shape = append(b.n, n), append(b.at, at), append(b.key, key), append(b.shape, shape)
	for i, v := range amounts {
		b.amounts[i] = append(b.amounts[i], v)
	}
}

// clip returns the batch so that adding to it leaves the arrays of this one as they are.
func (b *batch) clip() *batch {
	out := &batch{n: slices.Clip(b.n), at: slices.Clip(b.at), key: slices.Clip(b.key), shape: slices.Clip(b.shape)}
	for i := range b.amounts {
		out.amounts[i] = slices.Clip(b.amounts[i])
	}
	return out
}

func (b *batch) used(i int) used {
	var amounts [sumCount]int64
	for k := range amounts {
		amounts[k] = b.amounts[k][i]
	}
	return one(b.at[i], &amounts)
}

// slice returns the entries with these numbers, in this order.
func (b *batch) slice(of []int) *batch {
	out := &batch{}
	pick := func(from []int64) []int64 {
		to := make([]int64, len(of))
		for i, n := range of {
			to[i] = from[n]
		}
		return to
	}
	out.n, out.at, out.key, out.shape = pick(b.n), pick(b.at), pick(b.key), pick(b.shape)
	for k := range b.amounts {
		out.amounts[k] = pick(b.amounts[k])
	}
	return out
}

// encode returns the two halves of a pack: what finds a request, and its numbers.
func (b *batch) encode() (find, rest []byte) {
	return pack(b.at, b.key, b.shape), pack(b.amounts[:]...)
}

// packed is a pack of the database.
type packed struct {
	find, rest []packedColumn
	n          int
}

func openPack(find, rest []byte) (p packed, err error) {
	if p.find, p.n, err = unpack(find, 3); err != nil {
		return p, err
	}
	n := 0
	if p.rest, n, err = unpack(rest, sumCount); err == nil && n != p.n {
		err = errPack
	}
	return p, err
}

func (p *packed) used(i int) used {
	var amounts [sumCount]int64
	for k := range amounts {
		amounts[k] = p.rest[k].at(i)
	}
	return one(p.find[0].at(i), &amounts)
}

// kind is a set of names. The sums of a kind are those of the requests that have the same ones.
type kind int64

// byKey is the first kind, and others have one bit for each name of a shape. byBucket are the buckets of response times instead of shapes.
const (
	byKey    kind = 1
	byBucket kind = 1 << 20
)

var (
	byOthers = kind(1)<<len(api.Names) - 2
	byAll    = byOthers | byKey
)

// kindOf returns the kind of one name.
func kindOf(d api.Dimension) kind {
	for i, c := range api.Names {
		if c.Name == string(d) {
			return 1 << i
		}
	}
	return 0
}

// pairs are the kinds of the key and one other name.
var pairs = func() (all []kind) {
	for i := range api.Names[1:] {
		all = append(all, byKey|2<<i)
	}
	return all
}()

// cell names a sum: a key, or 0, and a shape, which stands for all shapes with the same names of the kind.
type cell struct{ key, shape int64 }

// cells are the sums of a kind in one period.
type cells map[cell]*used

func (c cells) add(at cell, u *used) {
	sum := c[at]
	if sum == nil {
		sum = new(used)
		c[at] = sum
	}
	sum.add(u)
}

// partKeys is the number of keys in one part of a period.
const partKeys = 64

// encode returns the cells, which are those of one part.
func (c cells) encode() []byte {
	list := slices.SortedFunc(maps.Keys(c), func(a, b cell) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.shape, b.shape)) })
	var columns [2 + numbers][]int64
	for _, at := range list {
		columns[0], columns[1] = append(columns[0], at.key), append(columns[1], at.shape)
		for i, v := range c[at] {
			columns[2+i] = append(columns[2+i], v)
		}
	}
	return pack(columns[:]...)
}

// decode adds the cells of a part.
func (c cells) decode(b []byte) error {
	columns, n, err := unpack(b, 2+numbers)
	for i := range n {
		u := cellUsed(columns, i)
		c.add(cell{columns[0].at(i), columns[1].at(i)}, &u)
	}
	return err
}

func cellUsed(columns []packedColumn, i int) (u used) {
	for k := range u {
		u[k] = columns[2+k].at(i)
	}
	return u
}
