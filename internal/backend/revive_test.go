package backend_test

import (
	"net/url"
	"testing"

	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/test/ollamatest"
)

// Where all are taken to be down, one that is back is found before a request is told that there is none.
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
		t.Fatal("nobody has been asked yet")
	}
	if !f.Revive(t.Context()) || !one.State().Healthy || two.State().Healthy {
		t.Errorf("one %+v, two %+v", one.State(), two.State())
	}
	asked := len(alive.RequestsTo("GET", "/api/version"))
	one.Set(backend.State{Reason: "ejected"})
	f.Refresh()
	if f.Revive(t.Context()) || len(alive.RequestsTo("GET", "/api/version")) != asked {
		t.Error("it was asked twice within a tenth of a second")
	}
}
