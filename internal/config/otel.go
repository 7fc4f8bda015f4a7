package config

import (
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
)

// Collector is the base address of an OpenTelemetry collector. A nil URL means no collector.
type Collector struct{ URL *url.URL }

// String returns the address.
func (c Collector) String() string {
	if c.URL == nil {
		return ""
	}
	return c.URL.String()
}

// UnmarshalText reads an address like http://127.0.0.1:4318.
func (c *Collector) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" ||
		u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return invalid("must be the http or https address of a collector, like http://127.0.0.1:4318")
	}
	if u.User != nil {
		return invalid("must not contain a user or password: use OTEL_EXPORTER_OTLP_HEADERS for those")
	}
	c.URL = u
	return nil
}

// Pairs are names with values, separated by commas, as OpenTelemetry writes them. Values may be percent-encoded.
type Pairs map[string]string

// UnmarshalText reads name=value,name=value.
func (p *Pairs) UnmarshalText(text []byte) error {
	pairs := Pairs{}
	for part := range strings.SplitSeq(string(text), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || name == "" || err != nil || !visible(name, "") || !visible(value, " ") {
			return invalid("must be name=value, separated by commas; write a comma or a percent sign in a value as %2C or %25")
		}
		pairs[name] = value
	}
	*p = pairs
	return nil
}

// String returns the pairs in order.
func (p Pairs) String() string {
	var list []string
	for name, value := range p {
		list = append(list, name+"="+url.PathEscape(value))
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// HiddenPairs are Pairs whose values are never printed, for headers.
type HiddenPairs map[string]Hidden

// UnmarshalText reads Pairs whose names are valid header names.
func (p *HiddenPairs) UnmarshalText(text []byte) error {
	var pairs Pairs
	if err := pairs.UnmarshalText(text); err != nil {
		return err
	}
	*p = HiddenPairs{}
	for name, value := range pairs {
		if !api.ValidHeaderName(name) {
			return invalid("must be headers that the collector requires, like authorization=Bearer%20abc")
		}
		(*p)[name] = Hidden(value)
	}
	return nil
}

// Part is a number from 0 to 1.
type Part float64

// UnmarshalText reads a number.
func (p *Part) UnmarshalText(text []byte) error {
	n, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.IsNaN(n) || n < 0 || n > 1 {
		return invalid("must be a number from 0 to 1, like 0.1")
	}
	*p = Part(n)
	return nil
}

// checkTraces validates the trace settings and warns about an endpoint that probably receives nothing.
func (c *Config) checkTraces() error {
	if c.OTLPEndpoint.URL == nil {
		return nil
	}
	if !visible(c.ServiceName, " ") || len(c.ServiceName) > 255 {
		return errorf("OTEL_SERVICE_NAME must be a name of up to 255 letters, digits and signs: leave it out to be called ollama-api-service")
	}
	if c.OTLPEndpoint.URL.Port() == "4317" {
		c.Warnings = append(c.Warnings, "OTEL_EXPORTER_OTLP_ENDPOINT names port 4317, where collectors usually expect gRPC, but traces are sent over HTTP: use the HTTP port, usually 4318")
	}
	return nil
}
