package certs

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"go.uber.org/zap/zapcore"
)

// acmeLog writes certmagic's lines into the service's log. It drops debug lines, which contain the CA's requests and answers, and all
// fields that are not in logged.
type acmeLog struct {
	log  *slog.Logger
	with []zapcore.Field
}

// logged are the fields with names, places, times and reasons. Fields with tokens, accounts or keys are not among them.
var logged = map[string]bool{
	"ca": true, "challenge_type": true, "identifier": true, "identifiers": true, "issuer": true, "storage": true,
	"subject": true, "subjects": true, "error": true, "problem": true,
	"attempt": true, "elapsed": true, "max_duration": true, "remaining": true, "retrying_in": true,
}

func (acmeLog) Enabled(level zapcore.Level) bool { return level >= zapcore.InfoLevel }

func (l acmeLog) With(fields []zapcore.Field) zapcore.Core {
	return acmeLog{l.log, slices.Concat(l.with, fields)}
}

func (l acmeLog) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if l.Enabled(e.Level) {
		return to.AddCore(e, l)
	}
	return to
}

func (l acmeLog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelDebug // successes are logged by event
	switch {
	case e.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	case e.Level == zapcore.WarnLevel:
		level = slog.LevelWarn
	}
	var attrs []slog.Attr
	for _, f := range slices.Concat(l.with, fields) {
		if err, ok := f.Interface.(error); ok && errors.Is(err, context.Canceled) {
			level = slog.LevelDebug // the service is stopping
		}
		if logged[f.Key] {
			one := zapcore.NewMapObjectEncoder()
			f.AddTo(one)
			value := one.Fields[f.Key]
			if d, ok := value.(time.Duration); ok {
				value = d.String()
			}
			attrs = append(attrs, slog.Any(f.Key, value))
		}
	}
	l.log.LogAttrs(context.Background(), level, "acme: "+e.Message, attrs...)
	return nil
}

func (acmeLog) Sync() error { return nil }
