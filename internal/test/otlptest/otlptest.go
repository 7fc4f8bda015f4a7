// Package otlptest is an OpenTelemetry collector for tests: it receives traces over OTLP/HTTP and stores them.
package otlptest

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one received span.
type Span struct {
	Name, Kind, Status     string // without the prefixes of the protocol: SERVER, ERROR
	Message                string // of the status
	TraceID, ID, Parent    string
	TraceState             string
	Start, End             time.Time
	Attributes, Of         map[string]any // of the span, and of its resource
	Events, Links, Dropped int
}

// Collector is a running collector. Create it with Start.
type Collector struct {
	*httptest.Server
	tb testing.TB

	mu      sync.Mutex
	spans   []Span
	headers []http.Header
	status  int
	hold    <-chan struct{}
}

// Start listens on a free port of 127.0.0.1 until the test ends.
func Start(tb testing.TB) *Collector {
	c := &Collector{tb: tb}
	c.Server = httptest.NewServer(http.HandlerFunc(c.take))
	tb.Cleanup(c.Close)
	return c
}

// StartTLSOn serves with TLS and HTTP/2 on a listener of the test.
func StartTLSOn(tb testing.TB, l net.Listener) *Collector {
	c := &Collector{tb: tb}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(c.take))
	c.Listener.Close()
	c.Listener, c.EnableHTTP2 = l, true
	c.StartTLS()
	tb.Cleanup(c.Close)
	return c
}

// Refuse makes the collector answer with the status; 0 accepts again.
func (c *Collector) Refuse(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

// Hold makes the collector answer nothing until the channel is closed.
func (c *Collector) Hold(until <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = until
}

func (c *Collector) take(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			c.tb.Errorf("not gzip: %v", err)
			return
		}
		body = unpacked
	}
	text, err := io.ReadAll(body)
	var sent collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(text, &sent)
	}
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		c.tb.Errorf("%s %s of %s: %v", r.Method, r.URL.Path, r.Header.Get("Content-Type"), err)
	}
	c.mu.Lock()
	c.headers = append(c.headers, r.Header)
	status, hold := c.status, c.hold
	if status == 0 {
		c.keepLocked(&sent)
	}
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	if status != 0 {
		http.Error(w, "not now", status)
	}
}

func (c *Collector) keepLocked(sent *collector.ExportTraceServiceRequest) {
	for _, resource := range sent.ResourceSpans {
		of := values(resource.Resource.GetAttributes())
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, Span{
					Name: s.Name, Kind: s.Kind.String()[len("SPAN_KIND_"):], Status: s.Status.GetCode().String()[len("STATUS_CODE_"):], Message: s.Status.GetMessage(),
					TraceID: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId), TraceState: s.TraceState,
					Start: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)),
					Attributes: values(s.Attributes), Of: of, Events: len(s.Events), Links: len(s.Links), Dropped: int(s.DroppedAttributesCount),
				})
			}
		}
	}
}

func values(list []*common.KeyValue) map[string]any {
	m := make(map[string]any, len(list))
	for _, kv := range list {
		m[kv.Key] = value(kv.Value)
	}
	return m
}

func value(v *common.AnyValue) any {
	switch v := v.Value.(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_BoolValue:
		return v.BoolValue
	case *common.AnyValue_IntValue:
		return v.IntValue
	case *common.AnyValue_DoubleValue:
		return v.DoubleValue
	case *common.AnyValue_ArrayValue:
		var list []any
		for _, one := range v.ArrayValue.Values {
			list = append(list, value(one))
		}
		return list
	}
	return nil
}

// Spans returns the spans received so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Headers returns the headers of the requests received so far, accepted or refused.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]http.Header(nil), c.headers...)
}
