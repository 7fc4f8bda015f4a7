package api

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A field that is missing in the table would be neither stored nor shown.
func TestKeyFieldsAreTheFieldsOfKey(t *testing.T) {
	inTable := map[string]int{}
	for _, f := range KeyFields {
		inTable[f.Name]++
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Key]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want := 1
		if name == "-" {
			want = 0
		}
		if got := inTable[name]; got != want {
			t.Errorf("KeyFields has %d lines for %s, want %d", got, name, want)
		}
		delete(inTable, name)
	}
	if len(inTable) > 0 {
		t.Errorf("KeyFields has lines for %v, want none without a field of Key", inTable)
	}
}

func TestKeyPatchHasThreeStates(t *testing.T) {
	limit := int64(5)
	k := NewKey("old", RoleUser, &limit)
	k.Weight, k.Note, k.Models = 3, "stays", []string{"tiny"}
	want := k
	want.Name, want.RateLimit, want.Weight, want.Models = "new", nil, 1, []string{}
	var p KeyPatch
	if err := json.Unmarshal([]byte(`{"name":"new","note":null,"rate_limit":null,"weight":null,"models":[]}`), &p); err != nil {
		t.Fatal(err)
	}
	if p.Apply(&k); !reflect.DeepEqual(k, want) {
		t.Errorf("the patch made %+v, want %+v", k, want)
	}
	if p.Empty() || p.Has("note") || !p.Has("rate_limit") || p.Has("role") {
		t.Errorf("given are %v, want name, rate_limit, weight and models", p.given)
	}
	for _, body := range []string{`{"key_preview":"oas_x"}`, `{"revoked_at":null,"created_at":"2026-01-01T00:00:00Z"}`, `[]`, `{"name":7}`} {
		if err := json.Unmarshal([]byte(body), &p); err == nil {
			t.Errorf("%s was read, want an error", body)
		}
	}
}

func TestKeyWeightIsANumber(t *testing.T) {
	for weight, valid := range map[float64]bool{
		1: true, 1000: true, 0.001: true, 0: false, -1: false, 1000.5: false, math.NaN(): false, math.Inf(1): false,
	} {
		k := NewKey("k", RoleUser, nil)
		k.Weight = weight
		if err := k.Validate(); (err == nil) != valid {
			t.Errorf("weight %v: %v, want valid %v", weight, err, valid)
		}
	}
}

// What a flag reads, the same field shows.
func TestKeyFlagsReadAndShow(t *testing.T) {
	now := time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)
	for _, c := range []struct{ field, text, shown string }{
		{"owner", "Sales team", "Sales team"},
		{"role", "admin", "admin"},
		{"rate_limit", "7", "7 requests in any 60 minutes"},
		{"rate_limit", "none", "no rate limit"},
		{"max_concurrent", "2", "2"},
		{"gpu_seconds_per_day", "5", "5 seconds in any 24 hours"},
		{"max_tokens_per_request", "none", "none"},
		{"strict", "true", "yes"},
		{"weight", "2.5", "2.5"},
		{"models", "tiny, qwen3:*", "tiny,qwen3:*"},
		{"models", "all", "all"},
		{"models", "none", "none"},
		{"allowed_ips", "10.0.0.7, 192.168.0.0/16", "10.0.0.7/32,192.168.0.0/16"},
		{"allowed_ips", "any", "any"},
		{"policy", "raw=refuse,num_ctx=max:8192", "num_ctx=max:8192,raw=refuse"},
		{"policy", "none", "the service's"},
		{"expires_at", "2d", "2026-11-27 09:30Z"},
		{"expires_at", "never", "never"},
	} {
		for _, f := range KeyFields {
			if f.Name != c.field {
				continue
			}
			var p KeyPatch
			k := NewKey("k", RoleUser, nil)
			if err := p.Read(f, c.text, now); err != nil {
				t.Errorf("--%s %s: %v, want none", f.Flag(), c.text, err)
			}
			if p.Apply(&k); f.Show(&k, now) != c.shown {
				t.Errorf("--%s %s shows %q, want %q", f.Flag(), c.text, f.Show(&k, now), c.shown)
			}
		}
	}
}
