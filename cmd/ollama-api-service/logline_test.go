package main

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"testing"
	"time"

	"ollama-api-service/internal/config"
)

var requestFields = []slog.Attr{
	slog.String("request_id", "0193b5a8-0d8f-7c1e-8d3e-0123456789ab"), slog.String("method", "POST"), slog.String("route", "/api/chat"),
	slog.Int("status", 200), slog.String("client", "127.0.0.1"), slog.String("key", "oas_0123456789"), slog.Float64("ms", 1.234),
	slog.Int64("bytes", 345), slog.String("model", "tiny:latest"), slog.String("outcome", "ok"), slog.Bool("streamed", false),
	slog.Int64("prompt_tokens", 12), slog.Int64("completion_tokens", 8), slog.Float64("ttfb_ms", 0.712), slog.Float64("slot_ms", 0.5),
	slog.Float64("gpu_ms", 0), slog.Int64("bytes_in", 120), slog.String("backend", "127.0.0.1:11434"), slog.Float64("queue_wait_ms", 0),
	slog.String("why", "warm"), slog.Int("tries", 1),
}

// Every line is the one that slog's JSON handler writes.
func TestLinesAreThoseOfTheJSONHandler(t *testing.T) {
	at := time.Date(2026, 11, 30, 9, 0, 0, 123_400_000, time.FixedZone("", 3600))
	records := []slog.Record{slog.NewRecord(time.Time{}, slog.LevelInfo, "without a time", 0), slog.NewRecord(at, slog.LevelWarn+1, "with \"quotes\"", 0)}
	request := slog.NewRecord(at, slog.LevelInfo, "request", 0)
	request.AddAttrs(requestFields...)
	records = append(records, request)
	for _, value := range []any{
		"", "a\nb", "ä\u2028", "\xff", `\`, "<&>", "\x7f", -1, uint64(math.MaxUint64), 0.0, -0.5, 1e-7, 1e21, 123456789.125, math.Inf(1), math.NaN(), true, nil,
		time.Second, at, errors.New("a cause"),
		[]int{1},
		slog.GroupValue(slog.Int("a", 1)), slog.GroupValue(),
	} {
		r := slog.NewRecord(at, slog.LevelError, "m", 0)
		r.AddAttrs(slog.String("before", "x"), slog.Any("value", value), slog.Int("after", 1))
		records = append(records, r)
	}
	for _, a := range []slog.Attr{{}, slog.Int("a \"key\"", 1), slog.Int("", 1)} {
		r := slog.NewRecord(at, slog.LevelDebug, "m", 0)
		r.AddAttrs(slog.Int("before", 1), a)
		records = append(records, r)
	}
	for _, r := range records {
		var want, got bytes.Buffer
		json := slog.NewJSONHandler(&want, nil)
		if err := json.Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		lines := plainLines{slog.NewJSONHandler(&got, nil), &got}
		if err := lines.Handle(t.Context(), r); err != nil || got.String() != want.String() {
			t.Errorf("got %q (error %v), want %q", &got, err, &want)
		}
	}
	var got bytes.Buffer
	log, w := newLogger(&config.Config{LogFormat: config.LogJSON}, &got)
	log.With("a", 1).WithGroup("g").Info("m", "b", 2)
	w.close()
	if !bytes.Contains(got.Bytes(), []byte(`"a":1,"g":{"b":2}`)) {
		t.Errorf("got %s, want the fields of the logger", &got)
	}
}

func BenchmarkRequestLine(b *testing.B) {
	out := new(bytes.Buffer)
	json := slog.NewJSONHandler(out, nil)
	for name, handler := range map[string]slog.Handler{"lines": plainLines{json, out}, "JSON handler": json} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				out.Reset()
				r := slog.NewRecord(time.Now(), slog.LevelInfo, "request", 0)
				r.AddAttrs(requestFields...)
				if err := handler.Handle(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
