package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/store"
)

func TestAuditCommand(t *testing.T) {
	d := newDesk(t)
	secret, preview := d.make("--name", "Anna's laptop", "--rate-limit", "500")
	d.make("--name", "other")
	d.run("keys", "change", preview, "--rate-limit", "1000")
	rotated := d.run("keys", "rotate", preview)
	d.run("keys", "revoke", preview)
	out := d.run("audit")
	wantLines(t, out, `TIME +BY +FROM +ACTION +TARGET +WHAT`, `.* command-line +local +key.revoke +`+preview+` .*`, `.* key.rotate .*`,
		`.* key.change +`+preview+` +rate_limit 500 -> 1000`, `.* key.create +`+preview+` .*name "Anna's laptop".*`)
	for _, text := range []string{secret, strings.TrimSpace(rotated)} {
		if strings.Contains(out, strings.TrimPrefix(text, preview+"_")) {
			t.Error("the audit table contains a secret")
		}
	}
	lines := func(args ...string) (actions []string) {
		var v struct{ Audit []store.AuditEntry }
		if err := json.Unmarshal([]byte(d.run(append([]string{"audit", "--json"}, args...)...)), &v); err != nil || v.Audit == nil {
			t.Fatal(err)
		}
		for _, e := range v.Audit {
			actions = append(actions, e.Action)
		}
		return actions
	}
	today := time.Now().UTC().Format(time.DateOnly)
	for args, want := range map[string]int{
		"": 5, "--limit 2": 2, "--limit 0": 5, "--target " + preview: 4, "--action key.create": 2, "--action key.create,key.revoke": 3,
		"--actor command-line": 5, "--actor env-admin": 0, "--from " + today: 5, "--to " + today: 5, "--from 2999-01-01": 0,
		"--target " + preview + " --action key.rotate": 1,
	} {
		if got := lines(strings.Fields(args)...); len(got) != want {
			t.Errorf("audit %s: %v, want %d", args, got, want)
		}
	}
	for _, args := range [][]string{{"--action", "key.read"}, {"--limit", "-1"}, {"--from", "yesterday"}, {"--to", "31.12.2026"}, {"--tz", "Mars/Base"}, {"--from", "2026-11-02", "--to", "2026-11-01"}} {
		d.fails(exitUsage, []string{args[0]}, append([]string{"audit"}, args...)...)
	}
}
