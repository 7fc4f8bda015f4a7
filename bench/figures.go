//go:build linux

package main

import (
	"fmt"
	"slices"
)

// The figures, which are rows of the tables. A row of CPU per small chat is named by variant.row.
const (
	chunkCPU   = "CPU per streamed chunk, µs"
	firstByte  = "added first byte p50, µs"
	firstTail  = "added first byte p99, µs"
	throughput = "requests per second"
	idleStream = "memory per idle stream, KiB"
	chunkRate  = "chunks per second, thousands"
	chunkAlone = "chunks in a separate read, %"

	firstStart = "first start, empty directory, to listening with its admin key printed, ms"
	nextStart  = "start to the first answered chat, ms"
	idleMemory = "resident memory after that chat, MiB"
	binarySize = "size of the binary (static, stripped), MiB"

	cachedFew  = "one key, few in the database"
	cachedMany = "one key, very many in the database"
	firstSome  = "each key for the first time, some in the database"
	firstMany  = "each key for the first time, very many in the database"
)

// compared are the rows of the table that compares the contestants, in its order.
func compared() (rows []string) {
	for _, v := range variants() {
		rows = append(rows, v.row())
	}
	rows = append(rows, chunkCPU, firstByte, firstTail, throughput, idleStream, chunkRate, chunkAlone)
	rows = append(rows, steadyTail, steadyMedian, steadyCPU, steadyMemory, steadyRate, steadyErrors, manyErrors, manyTail, manyMemory)
	for _, l := range []large{image, prompt} {
		rows = append(rows, l.cpu(), l.memory(), l.time())
	}
	return rows
}

// The figures that are better if they are higher, and those that are neither better nor worse.
var (
	higher  = []string{throughput, chunkRate, steadyRate}
	neutral = []string{chunkAlone}
)

// figures holds what each round measured, by row and contestant.
type figures map[string]map[string][]float64

func (f figures) add(row, name string, v float64) {
	if f[row] == nil {
		f[row] = map[string][]float64{}
	}
	f[row][name] = append(f[row][name], v)
}

// last returns the newest value, 0 if there is none.
func (f figures) last(row, name string) float64 {
	if v := f[row][name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return 0
}

// median returns the median. Its second result reports whether there is a measurement.
func (f figures) median(row, name string) (float64, bool) {
	v := f[row][name]
	return median(v), len(v) > 0
}

// median returns the middle value, or the mean of the two middle ones; 0 if there is none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// cell returns a median, empty if there is none.
func (f figures) cell(row, name string) string {
	m, ok := f.median(row, name)
	if !ok {
		return ""
	}
	return number(m)
}

// spread returns the lowest and the highest round, empty if there are not two.
func (f figures) spread(row, name string) string {
	v := f[row][name]
	if len(v) < 2 {
		return f.cell(row, name)
	}
	return number(slices.Min(v)) + " … " + number(slices.Max(v))
}

// withSpread returns a median with the lowest and the highest round in parentheses.
func (f figures) withSpread(row, name string) string {
	if len(f[row][name]) < 2 {
		return f.cell(row, name)
	}
	return f.cell(row, name) + " (" + f.spread(row, name) + ")"
}

// quotient returns one contestant's median divided by another's.
func (f figures) quotient(row, name, over string) (float64, bool) {
	a, ok := f.median(row, name)
	b, ok2 := f.median(row, over)
	if !ok || !ok2 || b <= 0 {
		return 0, false
	}
	return a / b, true
}

func (f figures) ratio(row, name, over string) string {
	q, ok := f.quotient(row, name, over)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%.2f", q)
}

// number formats v with three significant digits.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
