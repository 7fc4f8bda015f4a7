package main

import (
	"context"
	"io"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"
)

// plainLines writes records of plain fields, such as those of requests, as slog's JSON handler writes them, without its allocations. The
// embedded JSON handler writes all other records.
type plainLines struct {
	slog.Handler
	out io.Writer
}

var lineBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}

// Handle writes a line.
func (h plainLines) Handle(ctx context.Context, r slog.Record) error {
	buf := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buf)
	line, ok := appendRecord((*buf)[:0], r)
	if *buf = line; !ok {
		return h.Handler.Handle(ctx, r)
	}
	_, err := h.out.Write(line)
	return err
}

// appendRecord appends a record, or reports that it is not plain.
func appendRecord(b []byte, r slog.Record) (_ []byte, ok bool) {
	if ok = !r.Time.IsZero() && isPlain(r.Message); !ok {
		return b, false
	}
	b = r.Time.AppendFormat(append(b, `{"time":"`...), time.RFC3339Nano)
	b = append(append(b, `","level":"`...), r.Level.String()...)
	b = append(append(append(b, `","msg":"`...), r.Message...), '"')
	r.Attrs(func(a slog.Attr) bool {
		if ok = a.Key != "" && isPlain(a.Key); ok {
			b = append(append(append(b, `,"`...), a.Key...), `":`...)
			b, ok = appendValue(b, a.Value)
		}
		return ok
	})
	return append(b, "}\n"...), ok
}

func appendValue(b []byte, v slog.Value) (_ []byte, ok bool) {
	switch v.Kind() {
	case slog.KindString:
		s := v.String()
		return append(append(append(b, '"'), s...), '"'), isPlain(s)
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10), true
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool()), true
	case slog.KindFloat64:
		f := v.Float64()
		size := math.Abs(f)
		return strconv.AppendFloat(b, f, 'f', -1, 64), f == 0 || size >= 1e-6 && size < 1e21
	}
	return b, false
}

// isPlain reports whether a JSON string has the text as it is.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x80 || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
