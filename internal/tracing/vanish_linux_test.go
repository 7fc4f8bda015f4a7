package tracing

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"testing"
	"time"

	"ollama-api-service/internal/test/netbed"
	"ollama-api-service/internal/test/otlptest"
)

// The collector's name moves to another machine, and the old one stops answering. With HTTP/2, one connection carries every batch.
func TestACollectorThatMoves(t *testing.T) {
	if !netbed.Inside(t) {
		return
	}
	names, old, fresh := netbed.Hosts(t), netbed.New(t), netbed.New(t)
	const name = "www.example.com" // a name in the certificate of httptest
	names.Point(name, old.Addr)
	one, two := otlptest.StartTLSOn(t, old.Listen(4318)), otlptest.StartTLSOn(t, fresh.Listen(4318))
	c := open(t, "https://"+name+":4318", 1, io.Discard)
	roots := x509.NewCertPool()
	roots.AddCert(one.Certificate())
	c.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	send := func(to *otlptest.Collector, within time.Duration) {
		t.Helper()
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(within); len(to.Spans()) == 0; <-tick.C {
			if time.Now().After(end) {
				t.Fatalf("no span has arrived after %v", within)
			}
			_, span := c.Tracer().Start(t.Context(), "one")
			span.End()
		}
	}
	send(one, 10*time.Second)
	names.Point(name, fresh.Addr)
	old.Vanish()
	send(two, 3*exportTime)
}
