package backend_test

import (
	"net/url"
	"testing"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/test/ollamatest"
)

// If all servers seem down, one that is up again is found before a request fails.
func TestRevive(t *testing.T) {
	alive := ollamatest.Start(t)
	at, err := url.Parse(alive.URL)
	if err != nil {
		t.Fatal(err)
	}
	gone := &url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	one, two := backend.New("one", at, 4, "", ""), backend.New("two", gone, 4, "", "")
	f := backend.NewFleet(one, two)
	if f.Healthy() != 0 {
		t.Fatal("want an unhealthy fleet before the first probe")
	}
	if !f.Revive(t.Context()) || !one.State().Healthy || two.State().Healthy {
		t.Errorf("got one %+v, two %+v; want only one to be healthy", one.State(), two.State())
	}
	asked := len(alive.RequestsTo("GET", "/api/version"))
	one.Set(backend.State{Reason: "ejected"})
	f.Refresh()
	if f.Revive(t.Context()) || len(alive.RequestsTo("GET", "/api/version")) != asked {
		t.Error("the server was asked twice within a tenth of a second")
	}
}
