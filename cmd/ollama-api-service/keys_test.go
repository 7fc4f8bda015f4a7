package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/store"
)

func TestCreateKey(t *testing.T) {
	d := newDesk(t)
	out, errs, exit := call(t, d.environ, "keys", "create", "--name", "Anna's laptop")
	text := strings.TrimSuffix(out, "\n")
	preview, ok := auth.Parse(text)
	if exit != exitOK || !ok {
		t.Fatalf("exit %d with %q, want 0 with a key: %s", exit, out, errs)
	}
	if !strings.Contains(errs, preview) || !strings.Contains(errs, "shown only once") || strings.Contains(errs, text) {
		t.Errorf("standard error is %q, want the preview and a hint, but not the key", errs)
	}
	k := d.key(preview)
	if !bytes.Equal(k.MAC, d.secret.MAC(text)) || time.Since(k.CreatedAt) > time.Minute {
		t.Errorf("the key has MAC %x and was created at %v, want that of %q and now", k.MAC, k.CreatedAt, text)
	}
	limit := int64(100)
	want := api.NewKey("Anna's laptop", api.RoleUser, &limit)
	want.Preview, want.CreatedAt = preview, k.CreatedAt
	if !reflect.DeepEqual(k.Key, want) {
		t.Errorf("key is %+v, want %+v", k.Key, want)
	}
	log, _, err := d.store.Audit(t.Context(), store.AuditQuery{Limit: 1})
	if err != nil || len(log) != 1 || log[0].Actor != "command-line" || log[0].From != "local" {
		t.Errorf("audit %+v, %v, want 1 of them, %q, %q", log, err, "command-line", "local")
	}
}

func TestCreateKeyWithEverything(t *testing.T) {
	d := newDesk(t)
	_, preview := d.make("--name", "x", "--role", "admin", "--rate-limit", "7", "--max-concurrent", "2", "--models", "tiny, qwen3:*", "--allow-cloud",
		"--expires", "30d", "--allowed-ips", "10.0.0.7,192.168.0.0/16", "--note", "for tests", "--weight", "2.5", "--class", "batch")
	k := d.key(preview)
	got := fmt.Sprintln(k.Role, *k.RateLimit, *k.MaxConcurrent, k.Models, k.AllowCloud, k.Note, k.Weight, k.Class, k.AllowedIPs)
	if want := "admin 7 2 [tiny qwen3:*] true for tests 2.5 batch [10.0.0.7/32 192.168.0.0/16]\n"; got != want {
		t.Errorf("key is %swant %s", got, want)
	}
	if left := time.Until(*k.ExpiresAt); left < 30*24*time.Hour-time.Minute || left > 30*24*time.Hour {
		t.Errorf("expires in %v, want at least %v, at most %v", left, 30*24*time.Hour-time.Minute, 30*24*time.Hour)
	}
	_, preview = d.make("--name", "x", "--role", "admin", "--rate-limit", "none", "--models", "none", "--expires", "never")
	if k := d.key(preview); k.RateLimit != nil || k.Models == nil || len(k.Models) != 0 || k.ExpiresAt != nil {
		t.Errorf("key is %+v", k)
	}
	d.environ = append(d.environ, "DEFAULT_ADMIN_RATE_LIMIT=55", "DEFAULT_USER_RATE_LIMIT=44")
	_, admin := d.make("--name", "x", "--role", "admin")
	_, user := d.make("--name", "x")
	if *d.key(admin).RateLimit != 55 || *d.key(user).RateLimit != 44 {
		t.Error("the key does not have the default limit of the settings")
	}
}

func TestCreateKeyAsJSON(t *testing.T) {
	d := newDesk(t)
	out, errs, exit := call(t, d.environ, "keys", "create", "--name", "x", "--json")
	var k struct {
		APIKey    string `json:"api_key"`
		Preview   string `json:"key_preview"`
		RateLimit *int64 `json:"rate_limit"`
	}
	if err := json.Unmarshal([]byte(out), &k); err != nil || exit != exitOK || errs != "" {
		t.Fatalf("%v, exit %d: %s%s, want %v, none", err, exit, out, errs, exitOK)
	}
	if preview, ok := auth.Parse(k.APIKey); !ok || preview != k.Preview || *k.RateLimit != 100 {
		t.Errorf("%s", out)
	}
}

func TestBadKeyFlags(t *testing.T) {
	d := newDesk(t)
	for _, c := range []struct {
		word string
		args []string
	}{
		{"--name", []string{}},
		{"name", []string{"--name", ""}},
		{"name", []string{"--name", "two\nlines"}},
		{"role", []string{"--name", "x", "--role", "root"}},
		{"--rate-limit", []string{"--name", "x", "--rate-limit", "many"}},
		{"rate_limit", []string{"--name", "x", "--rate-limit", "-1"}},
		{"--max-concurrent", []string{"--name", "x", "--max-concurrent", ""}},
		{"max_concurrent", []string{"--name", "x", "--max-concurrent", "0"}},
		{"models", []string{"--name", "x", "--models", "a b/c/d/e"}},
		{"models", []string{"--name", "x", "--models", "tiny,"}},
		{"--expires", []string{"--name", "x", "--expires", "tomorrow"}},
		{"--expires", []string{"--name", "x", "--expires", "30"}},
		{"--expires", []string{"--name", "x", "--expires", "-1h"}},
		{"--expires", []string{"--name", "x", "--expires", "2020-01-01T00:00:00Z"}},
		{"--expires", []string{"--name", "x", "--expires", "99999999999999999999d"}},
		{"--expires", []string{"--name", "x", "--expires", "5000d"}},
		{"--allowed-ips", []string{"--name", "x", "--allowed-ips", "office"}},
		{"--weight", []string{"--name", "x", "--weight", "heavy"}},
		{"--weight", []string{"--name", "x", "--weight", "0"}},
		{"--weight", []string{"--name", "x", "--weight", "NaN"}},
		{"class", []string{"--name", "x", "--class", "night"}},
	} {
		d.fails(exitUsage, []string{c.word}, append([]string{"keys", "create"}, c.args...)...)
	}
	if keys, err := d.store.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("%d keys were created, %v, want 0 of them", len(keys), err)
	}
}

func TestListAndShow(t *testing.T) {
	d := newDesk(t)
	if out := d.run("keys", "list"); !strings.Contains(out, "keys create") {
		t.Errorf("without keys: %s, want %q in it", out, "keys create")
	}
	if out := d.run("keys", "list", "--json"); strings.Join(strings.Fields(out), "") != `{"api_keys":[],"total":0}` {
		t.Errorf("without keys: %s, want %s", out, `{"api_keys":[],"total":0}`)
	}
	text, preview := d.make("--name", "Ünï", "--models", "tiny", "--owner", "Sales team")
	_, gone := d.make("--name", "Gone", "--rate-limit", "none")
	d.run("keys", "revoke", gone)
	out := d.run("keys", "list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	at := strings.Index(lines[0], "STATUS")
	if len(lines) != 3 || at < 0 {
		t.Fatalf("the list:\n%s", out)
	}
	for _, line := range lines[1:] {
		r := []rune(line)
		if status := string(r[at:]); strings.HasPrefix(line, preview) && status != "works" || strings.HasPrefix(line, gone) && !strings.HasPrefix(status, "revoked 20") {
			t.Errorf("status is %q in\n%s", status, out)
		}
	}
	var list struct {
		Keys  []api.Key `json:"api_keys"`
		Total int       `json:"total"`
	}
	if err := json.Unmarshal([]byte(d.run("keys", "list", "--json")), &list); err != nil || list.Total != 2 || len(list.Keys) != 2 {
		t.Errorf("%v: %+v, want 2, 2 of them", err, list)
	}
	if out := d.run("keys", "list", "--owner", "Sales team"); !strings.Contains(out, "Sales team") || !strings.Contains(out, preview) || strings.Contains(out, gone) {
		t.Errorf("the keys of the sales team are\n%swant only %s, with its owner", out, preview)
	}
	if out := d.run("keys", "list", "--owner", "Sales"); out != "No matching keys.\n" {
		t.Errorf("the keys of Sales are\n%swant none", out)
	}
	shown := d.run("keys", "show", preview)
	if want := "owner                   Sales team\n"; !strings.Contains(shown, want) {
		t.Errorf("shown:\n%swant %q", shown, want)
	}
	if !strings.Contains(shown, "models                  tiny\n") || !strings.Contains(shown, "Ünï") {
		t.Errorf("shown:\n%s", shown)
	}
	var k api.Key
	if err := json.Unmarshal([]byte(d.run("keys", "show", text, "--json")), &k); err != nil || k.Preview != preview {
		t.Errorf("by its whole text: %v, %+v, want %v", err, k, preview)
	}
	for _, out := range []string{out, shown} {
		if strings.Contains(out, text) {
			t.Error("the output contains the text of a key")
		}
	}
}

func TestChangeKey(t *testing.T) {
	d := newDesk(t)
	_, preview := d.make("--name", "before", "--max-concurrent", "3", "--models", "tiny", "--allow-cloud", "--allowed-ips", "10.0.0.7", "--expires", "1h", "--note", "n")
	d.run("keys", "change", preview, "--name", "after", "--rate-limit", "0")
	k := d.key(preview)
	if got, want := fmt.Sprintln(k.Name, *k.RateLimit, *k.MaxConcurrent, k.Models, k.AllowCloud, k.Note), "after 0 3 [tiny] true n\n"; got != want {
		t.Errorf("key is %swant %s", got, want)
	}
	d.run("keys", "change", preview, "--rate-limit", "none", "--max-concurrent", "none", "--models", "all", "--allow-cloud=false", "--allowed-ips", "any", "--expires", "never", "--note", "")
	k = d.key(preview)
	want := api.NewKey("after", api.RoleUser, nil)
	want.Preview, want.CreatedAt, want.AllowedIPs = preview, k.CreatedAt, []api.Network{}
	if !reflect.DeepEqual(k.Key, want) {
		t.Errorf("key is %+v, want %+v", k.Key, want)
	}
	d.fails(exitUsage, []string{"nothing to change"}, "keys", "change", preview)
	d.fails(exitFailure, []string{"there is no key"}, "keys", "change", "oas_0000000000", "--note", "x")
}

func TestRotateKey(t *testing.T) {
	d := newDesk(t)
	old, preview := d.make("--name", "x")
	text := strings.TrimSpace(d.run("keys", "rotate", preview))
	k := d.key(preview)
	if got, ok := auth.Parse(text); !ok || got != preview || text == old {
		t.Fatalf("new text is of %q (%v), want another one of %q", got, ok, preview)
	}
	if !bytes.Equal(k.MAC, d.secret.MAC(text)) || !bytes.Equal(k.PreviousMAC, d.secret.MAC(old)) {
		t.Fatalf("the key has MAC %x and before it %x, want those of the new and the old text", k.MAC, k.PreviousMAC)
	}
	if left := time.Until(k.PreviousUntil); left < 24*time.Hour-time.Minute || left > 24*time.Hour {
		t.Errorf("grace is %v, want at least %v, at most %v", left, 24*time.Hour-time.Minute, 24*time.Hour)
	}
	d.fails(exitFailure, []string{"--force"}, "keys", "rotate", preview, "--grace", "0s")
	d.run("keys", "rotate", preview, "--grace", "0s", "--force")
	if d.key(preview).PreviousMAC != nil {
		t.Error("the old text still works without a grace period")
	}
	d.run("keys", "rotate", preview, "--grace", "3d")
	for _, bad := range []string{"73h", "4d", "-1h", "24", "long"} {
		d.fails(exitUsage, []string{"--grace"}, "keys", "rotate", preview, "--grace", bad)
	}
	d.run("keys", "revoke", preview)
	d.fails(exitFailure, []string{preview}, "keys", "rotate", preview)
}

func TestRevokeKey(t *testing.T) {
	d := newDesk(t)
	_, preview := d.make("--name", "x")
	if out := d.run("keys", "revoke", preview); !strings.Contains(out, preview+" is revoked") {
		t.Errorf("said %q", out)
	}
	at := *d.key(preview).RevokedAt
	if out := d.run("keys", "revoke", preview); !strings.Contains(out, "already revoked") || !d.key(preview).RevokedAt.Equal(at) {
		t.Errorf("the second output is %q", out)
	}
	text, leaked := d.make("--name", "leaked")
	if out := d.run("keys", "revoke", text, "--json"); !strings.Contains(out, leaked) || strings.Contains(out, text) || d.key(leaked).RevokedAt == nil {
		t.Errorf("revoked by its whole text: %s", out)
	}
	d.fails(exitUsage, []string{"ADMIN_API_KEY"}, "keys", "revoke", "env-admin")
	d.fails(exitUsage, []string{"DEMO_KEYS"}, "keys", "revoke", "demo-user")
	d.fails(exitFailure, []string{"there is no key"}, "keys", "revoke", "oas_0000000000")
	// An argument that is almost a key may be one, so errors do not repeat it.
	if _, errs, exit := call(t, d.environ, "keys", "revoke", text[:50]); exit != exitUsage || strings.Contains(errs, text[:20]) {
		t.Errorf("exit %d: %s", exit, errs)
	}
}

func TestTheLastAdminStays(t *testing.T) {
	d := newDesk(t)
	_, admin := d.make("--name", "the one", "--role", "admin")
	d.fails(exitFailure, nil, "keys", "revoke", admin)
	d.fails(exitFailure, nil, "keys", "change", admin, "--role", "user")
	d.fails(exitFailure, nil, "keys", "change", admin, "--expires", "1h")
	d.fails(exitFailure, []string{"allowed_ips", "--force"}, "keys", "change", admin, "--allowed-ips", "10.0.0.0/8")
	forced, _, exit := call(t, d.environ, "keys", "change", admin, "--allowed-ips", "10.0.0.0/8", "--force")
	_, said, again := call(t, d.environ, "keys", "change", admin, "--role", "user", "--force")
	if exit != exitOK || again != exitOK || !strings.Contains(forced, "10.0.0.0/8") || !strings.Contains(said, "keys create --role admin") {
		t.Errorf("with --force: exit %d and %d, output %q, then %q, want %v, %v, %q in it, %q in it", exit, again, forced, said, exitOK, exitOK, "10.0.0.0/8", "keys create --role admin")
	}
	d.run("keys", "change", admin, "--role", "admin", "--allowed-ips", "any")
	d.environ = append(d.environ, "ADMIN_API_KEY=an-admin-key-from-the-settings")
	d.run("keys", "revoke", admin)
	if d.key(admin).RevokedAt == nil {
		t.Error("not revoked, although ADMIN_API_KEY is set")
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// A key that was stored but could not be printed is lost. That must not look like success.
func TestAKeyThatCannotBePrintedIsAnError(t *testing.T) {
	d := newDesk(t)
	t.Chdir(t.TempDir())
	var errs bytes.Buffer
	if exit := run(t.Context(), []string{"keys", "create", "--name", "x"}, d.environ, brokenPipe{}, &errs); exit != exitFailure || !strings.Contains(errs.String(), "revoke oas_") {
		t.Errorf("exit %d: %s, want %v, %q in it", exit, errs.String(), exitFailure, "revoke oas_")
	}
}

func TestListChosenKeys(t *testing.T) {
	d := newDesk(t)
	_, laptop := d.make("--name", "Anna's laptop", "--expires", "1h")
	_, boss := d.make("--name", "boss", "--role", "admin")
	_, gone := d.make("--name", "gone laptop")
	d.run("keys", "revoke", gone)
	for args, want := range map[string][]string{
		"": {gone, boss, laptop}, "--sort name": {laptop, boss, gone}, "--state active": {boss, laptop}, "--state expiring": {laptop}, "--state revoked": {gone},
		"--search LAPTOP --sort created_at": {laptop, gone}, "--role admin": {boss}, "--state expired": {},
	} {
		var v struct {
			Keys []api.Key `json:"api_keys"`
		}
		if err := json.Unmarshal([]byte(d.run(append([]string{"keys", "list", "--json"}, strings.Fields(args)...)...)), &v); err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, k := range v.Keys {
			got = append(got, k.Preview)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("keys list %s: %v, want %v", args, got, want)
		}
	}
	if out := d.run("keys", "list", "--state", "expired"); !strings.Contains(out, "No matching keys") {
		t.Errorf("without keys: %s, want %q in it", out, "No matching keys")
	}
	for _, args := range []string{"--state gone", "--sort mac", "--role root"} {
		d.fails(exitUsage, []string{args[:5]}, append([]string{"keys", "list"}, strings.Fields(args)...)...)
	}
}
