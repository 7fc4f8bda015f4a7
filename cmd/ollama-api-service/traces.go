package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"

	"ollama-api-service/internal/config"
	"ollama-api-service/internal/tracing"
)

// lastSpans is how long the collector may take for the last spans at shutdown.
const lastSpans = 5 * time.Second

// traceSink sends the spans of requests. The zero value sends none.
type traceSink struct {
	tracer    trace.Tracer
	collector *tracing.Collector
}

func newTraces(ctx context.Context, cfg *config.Config, log *slog.Logger) (traceSink, error) {
	if cfg.OTLPEndpoint.URL == nil {
		return traceSink{}, nil
	}
	headers := make(map[string]string, len(cfg.OTLPHeaders))
	for name, value := range cfg.OTLPHeaders {
		headers[name] = string(value)
	}
	c, err := tracing.Open(ctx, tracing.Options{
		Endpoint: cfg.OTLPEndpoint.URL, Headers: headers, Service: cfg.ServiceName, Version: buildVersion(),
		Instance: uuid.NewString(), Attributes: cfg.ResourceAttributes, Ratio: float64(cfg.TraceRatio),
	}, log)
	if err != nil {
		return traceSink{}, err
	}
	log.Info("sending traces to a collector", "endpoint", cfg.OTLPEndpoint.String(), "ratio", float64(cfg.TraceRatio))
	return traceSink{c.Tracer(), c}, nil
}

// close sends the remaining spans. Spans that the collector does not accept in time are lost.
func (t traceSink) close(log *slog.Logger) {
	if t.collector == nil {
		return
	}
	last, cancel := context.WithTimeout(context.Background(), lastSpans)
	defer cancel()
	if err := t.collector.Close(last); err != nil {
		log.Warn("the last traces did not reach the collector", "cause", err.Error())
	}
}
