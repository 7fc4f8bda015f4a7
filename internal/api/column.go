package api

import (
	"fmt"
	"reflect"
	"slices"
	"time"
)

// Column describes a column of usage rows.
type Column struct {
	// Name is the column's name in JSON, in CSV and in the database.
	Name string
	// At returns a pointer to the column's field.
	At func(*Record) any
	// None is which value means that there is none: NULL in the database and, for durations, null in JSON.
	None None
	// StoreNone reports that the database has the value for none, and not NULL.
	StoreNone bool
	// Derived reports that the column is only shown. It is neither stored nor journalled.
	Derived bool
	// Hidden reports that the column is not shown.
	Hidden bool
	// Sum reports that usage has the sum of the column.
	Sum bool
	// Group and Filter return the column's place in a group and in a filter, if usage can be grouped and filtered by it.
	Group  func(*UsageGroup) **string
	Filter func(*RequestFilter) *[]string

	// The texts of the HTTP API.
	Doc, Example string
	Enum         []string
}

// None is a value that means that there is none.
type None int

// The values for none.
const (
	NoneNever None = iota
	NoneZero
	NoneNegative
)

func (n None) is(v int64) bool { return n == NoneZero && v == 0 || n == NoneNegative && v < 0 }

// StoredColumns returns the columns that the database and the journal have.
func StoredColumns() []*Column {
	return slices.DeleteFunc(slices.Clone(Columns), func(c *Column) bool { return c.Derived })
}

// ColumnOf returns the column with this name. It panics if there is none.
func ColumnOf(name string) *Column {
	for _, c := range Columns {
		if c.Name == name {
			return c
		}
	}
	panic("api: there is no usage column " + name)
}

// Names are the columns that usage can be grouped and filtered by.
var Names = slices.DeleteFunc(slices.Clone(Columns), func(c *Column) bool { return c.Group == nil })

// Dimensions returns the dimensions that usage can be grouped by: those of Names, and those of time, the longest first.
func Dimensions() (all []Dimension) {
	for _, c := range Names {
		all = append(all, Dimension(c.Name))
	}
	times := slices.Clone(Times)
	slices.Reverse(times)
	return append(all, times...)
}

// Name returns a pointer to the field for a dimension, or nil for a dimension of time.
func (g *UsageGroup) Name(d Dimension) **string {
	for _, c := range Names {
		if c.Name == string(d) {
			return c.Group(g)
		}
	}
	return nil
}

// Admitted reports whether the column is known when a request is admitted.
func (c *Column) Admitted() bool {
	var r Record
	at, admission := reflect.ValueOf(c.At(&r)).Pointer(), reflect.ValueOf(&r.Admission).Pointer()
	return at >= admission && at < admission+reflect.TypeFor[Admission]().Size()
}

// Stored returns the column's value of r as the database stores it: nil, int64, float64 (milliseconds) or string.
func (c *Column) Stored(r *Record) any {
	switch at := c.At(r).(type) {
	case *string:
		return *at
	case *int:
		return int64(*at)
	case *int64:
		if c.None.is(*at) {
			return nil
		}
		return *at
	case *bool:
		if *at {
			return int64(1)
		}
		return int64(0)
	case *time.Time:
		return at.UnixMilli()
	case *time.Duration:
		if c.None.is(int64(*at)) && !c.StoreNone {
			return nil
		}
		return float64(*at) / float64(time.Millisecond)
	case **time.Duration:
		if *at == nil {
			return nil
		}
		return (*at).Nanoseconds()
	}
	panic(c.unknown())
}

// Set sets the column's value of r to a value that the database has stored.
func (c *Column) Set(r *Record, stored any) {
	number, _ := stored.(int64)
	switch at := c.At(r).(type) {
	case *string:
		*at, _ = stored.(string)
	case *int:
		*at = int(number)
	case *int64:
		*at = number
	case *bool:
		*at = number != 0
	case *time.Time:
		*at = time.UnixMilli(number).UTC()
	case *time.Duration:
		*at = -1
		if ms, ok := stored.(float64); ok {
			*at = FromMilliseconds(ms)
		} else if c.None != NoneNegative {
			*at = 0
		}
	case **time.Duration:
		*at = nil
		if stored != nil {
			d := time.Duration(number)
			*at = &d
		}
	default:
		panic(c.unknown())
	}
}

// Shown returns the column's value of r as it is shown: nil, string, int64, float64 (milliseconds), bool or time.Time.
func (c *Column) Shown(r *Record) any {
	switch at := c.At(r).(type) {
	case *int64:
		return *at
	case *bool:
		return *at
	case *time.Time:
		return *at
	case *time.Duration:
		if c.None.is(int64(*at)) {
			return nil
		}
		return Milliseconds(*at)
	case **time.Duration:
		if c.Derived && *at != nil {
			return Milliseconds(**at)
		}
	}
	return c.Stored(r)
}

// Nullable reports whether the column can be shown as null.
func (c *Column) Nullable() bool {
	switch c.At(&noRecord).(type) {
	case *time.Duration:
		return c.None != NoneNever
	case **time.Duration:
		return true
	}
	return false
}

func (c *Column) unknown() string {
	return fmt.Sprintf("api: the usage column %s is a %T", c.Name, c.At(&noRecord))
}

// Amount is what r adds to the sum of the column: a number, 1 for true, or nanoseconds.
func (c *Column) Amount(r *Record) int64 {
	switch at := c.At(r).(type) {
	case *int64:
		return *at
	case *bool:
		if *at {
			return 1
		}
		return 0
	case *time.Duration:
		return max(int64(*at), 0)
	}
	panic(c.unknown())
}

// AmountOf is Amount of a stored value or of a sum of stored values.
func (c *Column) AmountOf(stored float64) int64 {
	if _, ok := c.At(&noRecord).(*time.Duration); ok {
		return int64(FromMilliseconds(stored))
	}
	return int64(stored)
}

// noRecord tells the types of columns. It is for reading, and has no values.
var noRecord Record
