package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/dial"
)

// A start uses the servers of the settings and those that admins added. Drained servers stay drained.
func TestTheFleetOfAStart(t *testing.T) {
	d := newDesk(t)
	by := api.Change{Actor: "oas_admin", From: "local", At: time.Now()}
	for _, name := range []string{"added", "gpu1"} {
		if err := d.store.AddBackend(t.Context(), api.Backend{Name: name, URL: &url.URL{Scheme: "http", Host: name + ".test:11434"}, Slots: 7, Draining: name == "added"}, by); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"gpu2", "gone"} {
		if err := d.store.DrainBackend(t.Context(), name, true, by); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load("", []string{"OLLAMA_BASE_URL=http://gpu1:11434?slots=2&total=3&weight=1.5,http://gpu2:11434"})
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	fleet, static, err := newFleet(t.Context(), cfg, dial.Means{}, d.store, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range fleet.All() {
		got = append(got, fmt.Sprint(b.Name, " ", b.URL, " ", b.Bounds(), " drained ", b.State().Draining, " static ", static[b.Name]))
	}
	want := []string{
		"gpu1 http://gpu1:11434 {2 3 1.5} drained false static true",
		"gpu2 http://gpu2:11434 {0 0 0} drained true static true",
		"added http://added.test:11434 {7 0 0} drained true static false",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the fleet is\n%s", strings.Join(got, "\n"))
	}
	if !strings.Contains(logged.String(), "backend=gpu1") {
		t.Errorf("the log does not mention the unused server: %s, want %q in it", logged.String(), "backend=gpu1")
	}
}
