package auth

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

func basic(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }

func TestCredential(t *testing.T) {
	type header = map[string][]string
	b := newBed(t)
	key, _ := b.key(api.Key{})
	other, _ := b.key(api.Key{})
	typo := key[:len(key)-1] + string(base62[(strings.IndexByte(base62, key[len(key)-1])+1)%62])
	const admin = "an-admin-key-from-the-settings"
	one := func(v string) header { return header{"Authorization": {v}} }
	for _, c := range []struct {
		name    string
		h       header
		path    string
		want    string // the text; with a code, the refused text
		code    api.Code
		says    string
		nothing bool
		passed  []string
	}{
		{name: "nothing", code: api.CodeUnauthorized, nothing: true},
		{name: "empty", h: one(""), code: api.CodeUnauthorized, nothing: true},
		{name: "scheme alone", h: one("Bearer"), code: api.CodeUnauthorized, nothing: true},
		{name: "scheme and spaces", h: one("Bearer  "), code: api.CodeUnauthorized, nothing: true},
		{name: "Bearer and one space", h: one("Bearer "), code: api.CodeUnauthorized, nothing: true},
		{name: "Basic and one space", h: one("Basic "), code: api.CodeUnauthorized, nothing: true},
		{name: "plain", h: one("Bearer " + key), want: key},
		{name: "a text that is not a key", h: one("Bearer KEY"), want: "KEY"},
		{name: "lower case", h: one("bearer " + key), want: key},
		{name: "any case", h: one("bEARER " + key), want: key},
		{name: "two spaces", h: one("Bearer  " + key), want: key},
		{name: "space and tab", h: one("Bearer \t" + key), want: key},
		{name: "tab", h: one("Bearer\t" + key), want: key},
		{name: "no scheme", h: one(key), want: key},
		{name: "Basic", h: one(basic("ollama:" + key)), want: key},
		{name: "Basic, no user", h: one(basic(":" + key)), want: key},
		{name: "Basic, colon in password", h: one(basic("u:KEY:x")), want: "KEY:x"},
		{name: "Basic, no password", h: one(basic("KEY:")), want: "KEY", code: api.CodeUnauthorized, says: "as its password"},
		{name: "Basic, no colon", h: one(basic("KEY")), want: "KEY", code: api.CodeUnauthorized, says: "as its password"},
		{name: "Basic, not base64", h: one("Basic !!!"), want: "!!!", code: api.CodeUnauthorized, says: "as its password"},
		{name: "other scheme", h: one("Token " + key), want: key, code: api.CodeUnauthorized, says: "does not have the form"},
		{name: "Bearer twice", h: one("Bearer Bearer " + key), want: key, code: api.CodeUnauthorized, says: "contains Bearer twice"},
		{name: "bearer Bearer", h: one("bearer Bearer KEY"), want: "KEY", code: api.CodeUnauthorized, says: "contains Bearer twice"},
		{name: "twice the same", h: header{"Authorization": {"Bearer " + key, "Bearer " + key}}, want: key, code: api.CodeBadRequest},
		{name: "twice, different", h: header{"Authorization": {"Bearer " + key, "Bearer " + other}}, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "twice, one empty", h: header{"Authorization": {"", "Bearer " + key}}, want: key},
		{name: "joined", h: one("Bearer " + key + ", Bearer " + other), code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "joined, the same", h: one("Bearer " + key + ",Bearer " + key), want: key, code: api.CodeBadRequest},
		{name: "joined, one of them not a key", h: one("Bearer " + key + ", Bearer ollama"), want: key, code: api.CodeBadRequest, passed: []string{"ollama"}},
		{name: "x-api-key", h: header{"X-Api-Key": {key}}, want: key},
		{name: "x-api-key empty", h: header{"X-Api-Key": {""}}, code: api.CodeUnauthorized, nothing: true},
		{name: "x-api-key twice", h: header{"X-Api-Key": {key, key}}, want: key, code: api.CodeBadRequest},
		{name: "api-key", h: header{"Api-Key": {key}}, want: key},
		{name: "api-key twice", h: header{"Api-Key": {key, other}}, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "path", path: key, want: key},
		{name: "identity headers", h: header{"X-Forwarded-User": {"admin"}, "X_role": {"admin"}}, code: api.CodeUnauthorized, nothing: true},

		{name: "agree", h: header{"Authorization": {"Bearer " + key}, "X-Api-Key": {key}, "Api-Key": {key}}, path: key, want: key},
		{name: "differ", h: header{"Authorization": {"Bearer " + key}, "X-Api-Key": {other}}, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "api-key differs", h: header{"Authorization": {"Bearer " + key}, "Api-Key": {other}}, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "path differs", h: one("Bearer " + key), path: other, code: api.CodeBadRequest, passed: []string{other, key}},
		{name: "path and x-api-key differ", h: header{"X-Api-Key": {key}}, path: other, code: api.CodeBadRequest, passed: []string{other, key}},
		{name: "a key of another scheme differs", h: one("Token " + other), path: key, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "a static key differs", h: one("Bearer " + admin), path: key, code: api.CodeBadRequest, passed: []string{key, admin}},
		{name: "a demo key differs", h: one("Bearer demo-user-key-67890"), path: key, code: api.CodeBadRequest, passed: []string{key, "demo-user-key-67890"}},
		{name: "Bearer twice differs", h: one("Bearer Bearer " + other), path: key, code: api.CodeBadRequest, passed: []string{key, other}},
		{name: "x-api-key with Bearer", h: header{"X-Api-Key": {"Bearer " + key}}, want: key, code: api.CodeUnauthorized, says: "send only the key"},
		{name: "api-key with Bearer", h: header{"Api-Key": {"bearer " + key}}, want: key, code: api.CodeUnauthorized, says: "send only the key"},
		{name: "more than are checked", h: one("Bearer " + strings.Repeat("a,", 500)), path: key, code: api.CodeBadRequest},
		{name: "Basic, nothing in it", h: one(basic(":")), code: api.CodeUnauthorized, nothing: true},

		{name: "an empty header", h: one("Bearer "), path: key, want: key},
		{name: "an empty x-api-key", h: header{"Authorization": {"Bearer " + key}, "X-Api-Key": {""}}, want: key},
		{name: "a placeholder", h: one("Bearer ollama"), path: key, want: key, passed: []string{"ollama"}},
		{name: "a placeholder in x-api-key", h: header{"X-Api-Key": {"sk-ant-none"}}, path: key, want: key, passed: []string{"sk-ant-none"}},
		{name: "the key in a header, a placeholder in the path", h: one("Bearer " + key), path: "KEY", want: key, passed: []string{"KEY"}},
		{name: "two placeholders", h: header{"Authorization": {"Bearer a"}, "Api-Key": {"b"}}, path: key, want: key, passed: []string{"a", "b"}},
		{name: "a mistyped key", h: one("Bearer " + typo), path: key, want: key, passed: []string{typo}},
		{name: "another scheme", h: header{"Authorization": {"Digest x"}, "X-Api-Key": {key}}, want: key, passed: []string{"x"}},
		{name: "Basic of something else", h: one(basic("u:hunter2")), path: key, want: key, passed: []string{"hunter2"}},
		{name: "Basic without a password", h: one(basic("u:")), path: key, want: key, passed: []string{"u"}},
		{name: "doubled placeholders", h: header{"Authorization": {"Bearer a", "Bearer b"}}, path: key, want: key, passed: []string{"a", "b"}},
		{name: "joined, and the key in the path", h: one("Bearer ollama, Bearer x"), path: key, want: key, passed: []string{"ollama", "x"}},
		{name: "Bearer twice with the key of the path", h: one("Bearer Bearer " + key), path: key, want: key},
		{name: "longer than any key", h: one("Bearer " + strings.Repeat("a", 2000)), path: key, want: key, passed: []string{strings.Repeat("a", 2000)}},
		{name: "none can be a key", h: one("Bearer a"), path: "b", want: "b", passed: []string{"b", "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, passed, err := b.Credential(http.Header(c.h), c.path)
			if got != c.want {
				t.Errorf("credential is %q, want %q", got, c.want)
			}
			if !slices.Equal(passed, c.passed) {
				t.Errorf("passed over %q, want %q", passed, c.passed)
			}
			if c.code == "" {
				if err != nil {
					t.Errorf("error is %v, want none", err)
				}
				return
			}
			e := api.AsError(err)
			if err == nil || e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Fatalf("error is %v, want %s with %q", err, c.code, c.says)
			}
			if strings.Contains(e.Message, key) || strings.Contains(e.Message, other) {
				t.Errorf("the message repeats the credential: %s, want no key, no %v", e.Message, other)
			}
			if errors.Is(err, ErrNoCredential) != c.nothing {
				t.Errorf("ErrNoCredential is %v, want %v", !c.nothing, c.nothing)
			}
		})
	}
}

// The choice between two texts must not reveal which keys exist, so it does not use the store.
func TestCredentialNeedsNoStore(t *testing.T) {
	b := newBed(t)
	key, _ := b.key(api.Key{})
	unknown, _, err := Mint(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.store.Close()
	if _, _, err := b.Credential(http.Header{"Authorization": {"Bearer " + unknown}}, key); api.AsError(err).Code != api.CodeBadRequest {
		t.Errorf("a key and an unknown one: %v, want %s", err, api.CodeBadRequest)
	}
}

func TestNoCredentialNamesEveryCarrier(t *testing.T) {
	_, _, err := newBed(t).Credential(http.Header{}, "")
	for _, way := range []string{"Authorization: Bearer KEY", "x-api-key: KEY", "Basic", "/k/KEY/"} {
		if !strings.Contains(api.AsError(err).Message, way) {
			t.Errorf("the message does not mention %s, want %v in it", way, way)
		}
	}
}

func FuzzCredential(f *testing.F) {
	for _, seed := range []string{"", "Bearer KEY", "bearer \tKEY", "Bearer a, Bearer b", basic("a:b"), "Basic =", "\t", "Bearer \x00", "Bearer \xff"} {
		f.Add(seed, "", "")
		f.Add("", seed, "KEY")
	}
	b := newBed(f)
	key, _ := b.key(api.Key{})
	f.Fuzz(func(t *testing.T, authorization, apiKey, path string) {
		h := http.Header{}
		if authorization != "" {
			h.Set("Authorization", authorization)
		}
		if apiKey != "" {
			h.Set("X-Api-Key", apiKey)
		}
		text, _, err := b.Credential(h, path)
		if text == "" && err == nil {
			t.Fatalf("credential %q with error %v", text, err)
		}
		if err == nil && path != "" && text != path && !b.couldBeKey(text) {
			t.Errorf("path %q lost to %q", path, text)
		}
		// Whatever else is sent, a key in the path is used or the request is refused.
		if text, _, err := b.Credential(h, key); err == nil && text != key {
			t.Errorf("the key in the path lost to %q", text)
		}
	})
}
