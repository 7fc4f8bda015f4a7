package store

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

func TestBackends(t *testing.T) {
	s, _ := create(t)
	ctx, at := t.Context(), time.UnixMilli(1_700_000_000_000).UTC()
	by := api.Change{Actor: "oas_admin", From: "127.0.0.1", At: at}
	address := &url.URL{Scheme: "http", Host: "gpu2:11434"}
	gpu2 := api.Backend{Name: "gpu2", URL: address, Slots: 2, Total: 3, Weight: 1.5, AddedAt: at}
	if err := s.AddBackend(ctx, gpu2, by); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.AddBackend(ctx, gpu2, by), api.CodeConflict)
	wantCode(t, s.AddBackend(ctx, api.Backend{Name: "a b", URL: address}, by), api.CodeBadRequest)
	wantCode(t, s.AddBackend(ctx, api.Backend{Name: "a", URL: address, Slots: -1}, by), api.CodeBadRequest)

	four, yes := 4, true
	changed, err := s.ChangeBackend(ctx, "gpu2", api.BackendPatch{Slots: &four, Drain: &yes}, by)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintln(changed.Slots, changed.Total, changed.Draining, changed.URL, changed.AddedAt)
	if want := fmt.Sprintln(4, 3, true, address, at); got != want {
		t.Errorf("changed to %swant %s", got, want)
	}
	if _, err := s.ChangeBackend(ctx, "gpu2", api.BackendPatch{Slots: &four}, by); err != nil {
		t.Error(err)
	}
	_, err = s.ChangeBackend(ctx, "gpu9", api.BackendPatch{Slots: &four}, by)
	wantCode(t, err, api.CodeNotFound)

	// For a server of the settings, the store has only its drain state and cannot remove it. Its name is free once the setting is
	// removed.
	for _, drain := range []bool{true, false, true} {
		if err := s.DrainBackend(ctx, "static", drain, by); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, s.RemoveBackend(ctx, "static", by), api.CodeNotFound)
	_, err = s.ChangeBackend(ctx, "static", api.BackendPatch{Slots: &four}, by)
	wantCode(t, err, api.CodeNotFound)
	list, err := s.Backends(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "gpu2" || list[1].URL != nil || !list[1].Draining {
		t.Errorf("%v, %+v", err, list)
	}
	if err := s.AddBackend(ctx, api.Backend{Name: "static", URL: address}, by); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"static", "gpu2"} {
		if err := s.RemoveBackend(ctx, name, by); err != nil {
			t.Error(err)
		}
	}
	wantCode(t, s.RemoveBackend(ctx, "gpu2", by), api.CodeNotFound)
	if list, err := s.Backends(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v, %+v", err, list)
	}
	log, _, err := s.Audit(ctx, AuditQuery{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	actions := map[string]int{}
	for _, e := range log {
		actions[e.Action+" "+e.Target]++
	}
	for action, want := range map[string]int{"backend.add gpu2": 1, "backend.change gpu2": 1, "backend.remove gpu2": 1, "backend.change static": 3} {
		if actions[action] != want {
			t.Errorf("%d audit entries %q, want %d", actions[action], action, want)
		}
	}
	if len(log) != 8 {
		t.Errorf("%d audit entries, want 8: %v", len(log), actions)
	}
}
