package store

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ollama-api-service/internal/api"
)

func by(actor string) api.Change {
	return api.Change{Actor: actor, From: "local", At: noon, KeepAdmin: true}
}

func user(preview string) api.Key {
	k := api.NewKey("name of "+preview, api.RoleUser, nil)
	k.Preview = preview
	return k
}

func admin(preview string) api.Key {
	k := user(preview)
	k.Role = api.RoleAdmin
	return k
}

func add(t *testing.T, s *Store, keys ...api.Key) {
	t.Helper()
	for _, k := range keys {
		change := by("command-line")
		if k.ExpiresAt != nil {
			change.At = k.ExpiresAt.Add(-time.Minute)
		}
		if err := s.CreateKey(t.Context(), k, []byte("mac of "+k.Preview), change); err != nil {
			t.Fatal(err)
		}
	}
}

func pointer[T any](v T) *T { return &v }

// patch returns the fields of a JSON object as a change.
func patch(t *testing.T, body string) (p api.KeyPatch) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Error(err)
	}
	return p
}

func TestKeyRoundTrip(t *testing.T) {
	s, path := create(t)
	full := api.Key{
		Preview: "oas_full", Name: "Äpfel 苹果", Owner: "Änne", Role: api.RoleAdmin, RateLimit: pointer[int64](0), MaxConcurrent: pointer[int64](3),
		TokensPerHour: pointer[int64](4), TokensPerDay: pointer[int64](5), GPUPerDay: pointer[int64](6), MaxOutput: pointer[int64](7), Strict: true, Weight: 0.25, Class: api.ClassBatch,
		Models: []string{"llama3:*", "qwen3"}, AllowCloud: true, ExpiresAt: pointer(noon.Add(time.Hour)),
		AllowedIPs: []api.Network{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")}},
		Note:       "a note", CreatedAt: noon.Add(-time.Hour),
	}
	bare := user("oas_bare")
	deny := user("oas_deny")
	deny.Models = []string{}
	deny.CreatedAt = noon.Add(time.Minute)
	add(t, s, full, bare, deny)
	bare.CreatedAt = noon

	for _, want := range []api.Key{full, bare, deny} {
		got := must[StoredKey](t)(open(t, path).Key(t.Context(), want.Preview))
		if !reflect.DeepEqual(got.Key, want) {
			t.Errorf("stored\n%+v\nread\n%+v", want, got.Key)
		}
		if string(got.MAC) != "mac of "+want.Preview || got.PreviousMAC != nil || !got.PreviousUntil.IsZero() {
			t.Errorf("%s has MAC %q, before it %q until %v", want.Preview, got.MAC, got.PreviousMAC, got.PreviousUntil)
		}
	}
	var order []string
	for _, k := range must[[]api.Key](t)(s.Keys(t.Context())) {
		order = append(order, k.Preview)
	}
	if got := strings.Join(order, " "); got != "oas_deny oas_bare oas_full" {
		t.Errorf("order is %s, want newest first", got)
	}
}

func TestCreateKeyRefuses(t *testing.T) {
	s, _ := create(t)
	add(t, s, user("oas_a"))
	wantCode(t, s.CreateKey(t.Context(), user("oas_a"), []byte("other"), by("x")), api.CodeConflict)
	if got := must[StoredKey](t)(s.Key(t.Context(), "oas_a")); string(got.MAC) != "mac of oas_a" {
		t.Error("the first key was replaced")
	}
	bad := user("oas_b")
	bad.Role = "root"
	wantCode(t, s.CreateKey(t.Context(), bad, []byte("m"), by("x")), api.CodeBadRequest)
	late := user("oas_c")
	late.ExpiresAt = pointer(noon)
	wantCode(t, s.CreateKey(t.Context(), late, []byte("m"), by("x")), api.CodeBadRequest)
	_, err := s.Key(t.Context(), "oas_secret_pasted_by_mistake")
	wantCode(t, err, api.CodeNotFound)
	if strings.Contains(err.Error(), "pasted") {
		t.Errorf("%v repeats a possible secret", err)
	}
	if log := audit(t, s, 10); len(log) != 1 {
		t.Errorf("%d audit entries for one change", len(log))
	}
}

func TestPatchThreeStates(t *testing.T) {
	s, _ := create(t)
	k := user("oas_a")
	k.RateLimit, k.Models, k.ExpiresAt = pointer[int64](5), []string{"tiny"}, pointer(noon.Add(time.Hour))
	k.AllowedIPs = []api.Network{{Prefix: netip.MustParsePrefix("10.0.0.7/32")}}
	add(t, s, k, admin("oas_admin"))
	change := func(p api.KeyPatch) api.Key {
		t.Helper()
		got := must[api.Key](t)(s.ChangeKey(t.Context(), "oas_a", p, by("oas_admin")))
		if stored := must[StoredKey](t)(s.Key(t.Context(), "oas_a")); !reflect.DeepEqual(stored.Key, got) {
			t.Fatalf("returned %+v, stored %+v", got, stored.Key)
		}
		return got
	}
	// Absent fields do not change.
	k.CreatedAt = k.ExpiresAt.Add(-time.Minute)
	want := k
	if got := change(api.KeyPatch{}); !reflect.DeepEqual(got, want) {
		t.Fatalf("an empty patch made %+v of %+v", got, want)
	}
	// Fields with a value.
	finer := noon.Add(2 * time.Hour).Add(123456 * time.Nanosecond)
	want.TokensPerHour, want.TokensPerDay, want.GPUPerDay, want.MaxOutput, want.Strict = pointer[int64](14), pointer[int64](15), pointer[int64](16), pointer[int64](17), true
	want.Name, want.RateLimit, want.MaxConcurrent, want.Models, want.AllowCloud, want.Note =
		"other", pointer[int64](0), pointer[int64](2), []string{}, true, "why"
	want.ExpiresAt = pointer(finer.Truncate(time.Millisecond))
	want.Weight, want.Class = 2.5, api.ClassBatch
	got := change(patch(t, `{"name":"other","rate_limit":0,"max_concurrent":2,"tokens_per_hour":14,"tokens_per_day":15,"gpu_seconds_per_day":16,
		"max_tokens_per_request":17,"strict":true,"weight":2.5,"class":"batch","models":[],"allow_cloud":true,"note":"why",
		"expires_at":"`+finer.Format(time.RFC3339Nano)+`"}`))
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	// Fields that are null.
	want.RateLimit, want.MaxConcurrent, want.Models, want.ExpiresAt, want.AllowedIPs = nil, nil, nil, nil, nil
	want.TokensPerHour, want.TokensPerDay, want.GPUPerDay, want.MaxOutput, want.Strict = nil, nil, nil, nil, false
	want.Weight, want.Class = 1, api.ClassInteractive
	got = change(patch(t, `{"rate_limit":null,"max_concurrent":null,"tokens_per_hour":null,"tokens_per_day":null,"gpu_seconds_per_day":null,
		"max_tokens_per_request":null,"strict":false,"weight":null,"class":null,"models":null,"expires_at":null,"allowed_ips":null}`))
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	// An invalid value changes nothing.
	for _, body := range []string{
		`{"name":""}`, `{"rate_limit":-1}`, `{"expires_at":"` + noon.Format(time.RFC3339) + `"}`, `{"models":["a b"]}`,
		`{"weight":0}`, `{"weight":1000.5}`, `{"class":"night"}`,
	} {
		_, err := s.ChangeKey(t.Context(), "oas_a", patch(t, body), by("oas_admin"))
		wantCode(t, err, api.CodeBadRequest)
	}
	if got := change(api.KeyPatch{}); !reflect.DeepEqual(got, want) {
		t.Fatalf("a refused patch left %+v", got)
	}
	_, err := s.ChangeKey(t.Context(), "oas_none", api.KeyPatch{}, by("oas_admin"))
	wantCode(t, err, api.CodeNotFound)
}

func TestRotate(t *testing.T) {
	s, _ := create(t)
	add(t, s, user("oas_a"))
	is := func(mac, previous string, until time.Time) {
		t.Helper()
		k := must[StoredKey](t)(s.Key(t.Context(), "oas_a"))
		if string(k.MAC) != mac || string(k.PreviousMAC) != previous || !k.PreviousUntil.Equal(until) {
			t.Fatalf("MAC %q, before it %q until %v; want %q, %q, %v", k.MAC, k.PreviousMAC, k.PreviousUntil, mac, previous, until)
		}
	}
	change := by("cli")
	rotate := func(mac string, grace time.Duration) error {
		_, err := s.RotateKey(t.Context(), "oas_a", []byte(mac), grace, change)
		return err
	}
	steps := []struct {
		mac      string
		grace    time.Duration
		previous string
		until    time.Time
	}{
		{"second", time.Hour, "mac of oas_a", noon.Add(time.Hour)},
		{"third", api.MaxGrace, "second", noon.Add(api.MaxGrace)}, // of three secrets, two work
		{"fourth", 0, "", time.Time{}},
	}
	for i, step := range steps {
		if i > 0 {
			wantCode(t, rotate(step.mac, step.grace), api.CodeConflict) // within the grace period of the previous one
		}
		change.Force = i > 0
		if err := rotate(step.mac, step.grace); err != nil {
			t.Fatal(err)
		}
		change.Force = false
		is(step.mac, step.previous, step.until)
	}
	wantCode(t, rotate("fifth", -time.Second), api.CodeBadRequest)
	wantCode(t, rotate("fifth", api.MaxGrace+time.Second), api.CodeBadRequest)
	is("fourth", "", time.Time{})

	if err := rotate("fifth", time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][3]string{{"fourth", "fourth'"}, {"fifth", "fifth'"}, {"unknown", "x"}} {
		if err := s.RehashKey(t.Context(), "oas_a", []byte(r[0]), []byte(r[1])); err != nil {
			t.Fatal(err)
		}
	}
	is("fifth'", "fourth'", noon.Add(time.Hour))
	change.At = noon.Add(time.Hour)
	if err := rotate("later", time.Hour); err != nil {
		t.Errorf("after the grace period: %v", err)
	}
	is("later", "fifth'", noon.Add(2*time.Hour))
	if _, err := s.RevokeKey(t.Context(), "oas_a", by("cli")); err != nil {
		t.Fatal(err)
	}
	is("later", "", time.Time{})
	wantCode(t, rotate("sixth", 0), api.CodeConflict)
}

func TestRevoke(t *testing.T) {
	s, _ := create(t)
	add(t, s, user("oas_a"))
	first := must[api.Key](t)(s.RevokeKey(t.Context(), "oas_a", by("cli")))
	if first.RevokedAt == nil || !first.RevokedAt.Equal(noon) || first.Live(noon) {
		t.Fatalf("revoked at %v", first.RevokedAt)
	}
	later := by("cli")
	later.At = noon.Add(time.Hour)
	if again := must[api.Key](t)(s.RevokeKey(t.Context(), "oas_a", later)); !reflect.DeepEqual(again, first) {
		t.Errorf("revoking again made %+v", again)
	}
	if log := audit(t, s, 10); len(log) != 2 {
		t.Errorf("%d audit entries, want one for creation and one for revocation", len(log))
	}
	if keys := must[[]api.Key](t)(s.Keys(t.Context())); len(keys) != 1 {
		t.Error("the record was deleted")
	}
	_, err := s.ChangeKey(t.Context(), "oas_a", patch(t, `{"name":"x"}`), by("cli"))
	wantCode(t, err, api.CodeConflict)
	_, err = s.RevokeKey(t.Context(), "oas_none", by("cli"))
	wantCode(t, err, api.CodeNotFound)
}

func TestLastAdmin(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	expiring := func(preview string, at time.Time) api.Key {
		k := admin(preview)
		k.ExpiresAt = &at
		return k
	}
	bound := func(preview string) api.Key {
		k := admin(preview)
		k.AllowedIPs = []api.Network{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}
		return k
	}
	bind := patch(t, `{"allowed_ips":["10.0.0.0/8"]}`)
	tomorrow, yesterday := noon.AddDate(0, 0, 1), noon.AddDate(0, 0, -1)
	demote := patch(t, `{"role":"user"}`)
	later := patch(t, `{"expires_at":"`+tomorrow.Add(time.Hour).Format(time.RFC3339)+`"}`)
	rename, block, free := patch(t, `{"name":"other"}`), patch(t, `{"rate_limit":0}`), patch(t, `{"allowed_ips":null}`)
	expire := patch(t, `{"expires_at":"`+tomorrow.Format(time.RFC3339)+`"}`)
	for _, c := range []struct {
		name    string
		others  []api.Key
		key     api.Key
		patch   *api.KeyPatch // nil revokes
		refused bool
	}{
		{"revoke the only one", nil, admin("oas_k"), nil, true},
		{"demote the only one", nil, admin("oas_k"), &demote, true},
		{"expire the only one", nil, admin("oas_k"), &expire, true},
		{"rename the only one", nil, admin("oas_k"), &rename, false},
		{"block the only one", nil, admin("oas_k"), &block, false},
		{"revoke next to a user", []api.Key{user("oas_u")}, admin("oas_k"), nil, true},
		{"revoke next to an expired one", []api.Key{expiring("oas_x", yesterday)}, admin("oas_k"), nil, true},
		{"revoke next to one that will expire", []api.Key{expiring("oas_x", tomorrow)}, admin("oas_k"), nil, true},
		{"demote next to one that will expire", []api.Key{expiring("oas_x", tomorrow)}, admin("oas_k"), &demote, true},
		{"revoke next to a lasting one", []api.Key{admin("oas_b")}, admin("oas_k"), nil, false},
		{"demote next to a lasting one", []api.Key{admin("oas_b")}, admin("oas_k"), &demote, false},
		{"expire next to a lasting one", []api.Key{admin("oas_b")}, admin("oas_k"), &expire, false},
		{"revoke the only live one, which expires", []api.Key{expiring("oas_x", yesterday)}, expiring("oas_k", tomorrow), nil, true},
		{"demote the only live one, which expires", nil, expiring("oas_k", tomorrow), &demote, true},
		{"expire later the only live one", nil, expiring("oas_k", tomorrow), &later, false},
		{"revoke an expiring one next to a live one", []api.Key{expiring("oas_x", tomorrow)}, expiring("oas_k", tomorrow), nil, false},
		{"revoke an expired one", nil, expiring("oas_k", yesterday), nil, false},
		{"demote an expired one", nil, expiring("oas_k", yesterday), &demote, false},
		{"bind the only one to addresses", nil, admin("oas_k"), &bind, true},
		{"bind next to an open one", []api.Key{admin("oas_b")}, admin("oas_k"), &bind, false},
		{"revoke next to one bound to addresses", []api.Key{bound("oas_b")}, admin("oas_k"), nil, true},
		{"revoke one bound to addresses next to another", []api.Key{bound("oas_b")}, bound("oas_k"), nil, false},
		{"revoke the only one, bound to addresses", nil, bound("oas_k"), nil, true},
		{"free the only one, bound to addresses", nil, bound("oas_k"), &free, false},
		{"revoke a user", nil, user("oas_k"), nil, false},
		{"revoke itself next to one that will expire", []api.Key{expiring("oas_x", tomorrow)}, admin("oas_k"), nil, false},
		{"revoke itself next to an expired one", []api.Key{expiring("oas_x", yesterday)}, admin("oas_k"), nil, true},
		{"revoke itself next to one bound to addresses", []api.Key{bound("oas_x")}, admin("oas_k"), nil, true},
		{"revoke itself, bound to addresses, next to another", []api.Key{bound("oas_x")}, bound("oas_k"), nil, true},
		{"revoke itself, bound to addresses, next to one that will expire", []api.Key{expiring("oas_x", tomorrow)}, bound("oas_k"), nil, false},
		{"revoke itself, the only one", nil, admin("oas_k"), nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := create(t)
			add(t, s, append(c.others, c.key)...)
			before := must[StoredKey](t)(s.Key(t.Context(), "oas_k"))
			try := func(change api.Change) error {
				if c.patch == nil {
					_, err := s.RevokeKey(t.Context(), "oas_k", change)
					return err
				}
				_, err := s.ChangeKey(t.Context(), "oas_k", *c.patch, change)
				return err
			}
			actor := "cli"
			if strings.HasPrefix(c.name, "revoke itself") {
				actor = "oas_k"
			}
			err := try(by(actor))
			if !c.refused {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCode(t, err, api.CodeConflict)
			if after := must[StoredKey](t)(s.Key(t.Context(), "oas_k")); !reflect.DeepEqual(after, before) {
				t.Fatalf("a refused change left %+v", after)
			}
			free := by("cli")
			free.KeepAdmin = false
			if err := try(free); err != nil {
				t.Errorf("refused although a setting has another admin key: %v", err)
			}
		})
	}
}

func TestLastAdminOfARevokedPair(t *testing.T) {
	s, _ := create(t)
	add(t, s, admin("oas_a"), admin("oas_b"))
	if _, err := s.RevokeKey(t.Context(), "oas_a", by("cli")); err != nil {
		t.Fatal(err)
	}
	_, err := s.RevokeKey(t.Context(), "oas_b", by("cli"))
	wantCode(t, err, api.CodeConflict)
}

func TestAdminExists(t *testing.T) {
	s, _ := create(t)
	exists := func(now time.Time) bool { t.Helper(); return must[bool](t)(s.AdminExists(t.Context(), now)) }
	add(t, s, user("oas_u"))
	if exists(noon) {
		t.Error("a user key counts as an admin key")
	}
	k := admin("oas_a")
	k.ExpiresAt = pointer(noon.Add(time.Hour))
	add(t, s, k)
	if !exists(noon) || !exists(noon.Add(time.Hour-time.Millisecond)) || exists(noon.Add(time.Hour)) {
		t.Error("an expired key counts")
	}
	if _, err := s.RevokeKey(t.Context(), "oas_a", api.Change{At: noon}); err != nil {
		t.Fatal(err)
	}
	if exists(noon) {
		t.Error("a revoked key counts as an admin key")
	}
}

func TestAudit(t *testing.T) {
	s, path := create(t)
	k := user("oas_a")
	mac, second := []byte("first-mac-canary"), []byte("second-mac-canary")
	if err := s.CreateKey(t.Context(), k, mac, api.Change{Actor: "command-line", From: "local", At: noon}); err != nil {
		t.Fatal(err)
	}
	from := api.Change{Actor: "oas_boss", From: "10.0.0.7", At: noon.Add(time.Second)}
	some := patch(t, `{"rate_limit":7,"models":["tiny"]}`)
	must[api.Key](t)(s.ChangeKey(t.Context(), "oas_a", some, from))
	must[api.Key](t)(s.ChangeKey(t.Context(), "oas_a", some, from)) // changes nothing
	must[api.Key](t)(s.RotateKey(t.Context(), "oas_a", second, time.Minute, from))
	must[api.Key](t)(s.RevokeKey(t.Context(), "oas_a", from))

	log := audit(t, open(t, path), 10)
	want := []struct{ action, detail string }{
		{ActionRevoke, `{"name":"name of oas_a","role":"user"}`},
		{ActionRotate, `{"grace_seconds":60}`},
		{ActionChange, `{"models":{"from":null,"to":["tiny"]},"rate_limit":{"from":null,"to":7}}`},
		{ActionCreate, `{"allow_cloud":false,"allowed_ips":null,"class":"interactive","expires_at":null,"gpu_seconds_per_day":null,"max_concurrent":null,"max_tokens_per_request":null,` +
			`"models":null,"name":"name of oas_a","note":"","owner":"","policy":null,"rate_limit":null,"role":"user","strict":false,"tokens_per_day":null,"tokens_per_hour":null,"weight":1}`},
	}
	if len(log) != len(want) {
		t.Fatalf("%d entries, want %d", len(log), len(want))
	}
	for i, e := range log {
		if e.Action != want[i].action || string(e.Detail) != want[i].detail || e.Target != "oas_a" {
			t.Errorf("entry %d is %s %s %s", i, e.Action, e.Target, e.Detail)
		}
	}
	if e := log[0]; e.Actor != "oas_boss" || e.From != "10.0.0.7" || !e.At.Equal(from.At) {
		t.Errorf("the last entry is by %s from %s at %v", e.Actor, e.From, e.At)
	}
	text := must[[]byte](t)(json.Marshal(log))
	if bytes.Contains(text, []byte("canary")) {
		t.Error("the audit table contains a MAC")
	}
	if log := audit(t, s, 1); len(log) != 1 || log[0].Action != ActionRevoke {
		t.Errorf("the newest entry is %v", log)
	}
}

// A key that CreateKey has acknowledged is in the file even if the database is not closed, because the program may be killed.
func TestAcknowledgedIsWritten(t *testing.T) {
	s, path := create(t)
	add(t, s, user("oas_a"))
	copied := filepath.Join(t.TempDir(), "books.db")
	for _, end := range []string{"", "-wal"} {
		if err := os.WriteFile(copied+end, must[[]byte](t)(os.ReadFile(path+end)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(t, copied).Key(t.Context(), "oas_a"); err != nil {
		t.Fatal(err)
	}
}

// A key with allowed_ips may end another such key, but not itself.
func TestTheOwnEndOfAnAdminBoundToAddresses(t *testing.T) {
	s, _ := create(t)
	for _, preview := range []string{"oas_a", "oas_b"} {
		k := admin(preview)
		k.AllowedIPs = []api.Network{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}
		add(t, s, k)
	}
	_, err := s.RevokeKey(t.Context(), "oas_a", by("oas_a"))
	wantCode(t, err, api.CodeConflict)
	if _, err := s.RevokeKey(t.Context(), "oas_b", by("oas_a")); err != nil {
		t.Error(err)
	}
}

// Two admins revoke each other at the same time: one of them remains.
func TestAdminsThatRevokeEachOther(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	for range 20 {
		s, _ := create(t)
		add(t, s, admin("oas_a"), admin("oas_b"))
		failures := make(chan error, 2)
		for actor, target := range map[string]string{"oas_a": "oas_b", "oas_b": "oas_a"} {
			go func() {
				_, err := s.RevokeKey(t.Context(), target, by(actor))
				failures <- err
			}()
		}
		if a, b := <-failures, <-failures; (a == nil) == (b == nil) {
			t.Fatalf("%v and %v, want one of them refused", a, b)
		}
	}
}
