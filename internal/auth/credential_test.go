package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"

	"ollama-api-service/internal/api"
)

func basic(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }

func TestCredential(t *testing.T) {
	type header = map[string][]string
	one := func(v string) header { return header{"Authorization": {v}} }
	for _, c := range []struct {
		name    string
		h       header
		path    string
		want    string
		code    api.Code
		nothing bool
	}{
		{name: "nothing", code: api.CodeUnauthorized, nothing: true},
		{name: "empty", h: one(""), code: api.CodeUnauthorized},
		{name: "scheme alone", h: one("Bearer"), code: api.CodeUnauthorized},
		{name: "scheme and spaces", h: one("Bearer  "), code: api.CodeUnauthorized},
		{name: "Bearer and one space", h: one("Bearer "), code: api.CodeUnauthorized},
		{name: "plain", h: one("Bearer KEY"), want: "KEY"},
		{name: "lower case", h: one("bearer KEY"), want: "KEY"},
		{name: "any case", h: one("bEARER KEY"), want: "KEY"},
		{name: "two spaces", h: one("Bearer  KEY"), want: "KEY"},
		{name: "space and tab", h: one("Bearer \tKEY"), want: "KEY"},
		{name: "tab", h: one("Bearer\tKEY"), want: "KEY"},
		{name: "Basic", h: one(basic("ollama:KEY")), want: "KEY"},
		{name: "Basic, no user", h: one(basic(":KEY")), want: "KEY"},
		{name: "Basic, colon in password", h: one(basic("u:KEY:x")), want: "KEY:x"},
		{name: "Basic, no password", h: one(basic("KEY:")), code: api.CodeUnauthorized},
		{name: "Basic, no colon", h: one(basic("KEY")), code: api.CodeUnauthorized},
		{name: "Basic, no base64", h: one("Basic !!!"), code: api.CodeUnauthorized},
		{name: "other scheme", h: one("Token KEY"), code: api.CodeUnauthorized},
		{name: "no scheme", h: one("KEY"), code: api.CodeUnauthorized},
		{name: "twice the same", h: header{"Authorization": {"Bearer KEY", "Bearer KEY"}}, code: api.CodeBadRequest},
		{name: "twice, different", h: header{"Authorization": {"Bearer KEY", "Bearer OTHER"}}, code: api.CodeBadRequest},
		{name: "differ", h: header{"Authorization": {"Bearer KEY"}, "X-Api-Key": {"OTHER"}}, code: api.CodeBadRequest},
		{name: "agree", h: header{"Authorization": {"Bearer KEY"}, "X-Api-Key": {"KEY"}}, want: "KEY"},
		{name: "joined", h: one("Bearer KEY, Bearer OTHER"), code: api.CodeBadRequest},
		{name: "joined, the same", h: one("Bearer KEY,Bearer KEY"), code: api.CodeBadRequest},
		{name: "x-api-key", h: header{"X-Api-Key": {"KEY"}}, want: "KEY"},
		{name: "x-api-key empty", h: header{"X-Api-Key": {""}}, code: api.CodeUnauthorized},
		{name: "x-api-key twice", h: header{"X-Api-Key": {"KEY", "KEY"}}, code: api.CodeBadRequest},
		{name: "path", path: "KEY", want: "KEY"},
		{name: "path and header agree", h: one("Bearer KEY"), path: "KEY", want: "KEY"},
		{name: "path and header differ", h: one("Bearer KEY"), path: "OTHER", code: api.CodeBadRequest},
		{name: "path and x-api-key differ", h: header{"X-Api-Key": {"KEY"}}, path: "OTHER", code: api.CodeBadRequest},
		{name: "good key beside a broken header", h: header{"Authorization": {"Token x"}, "X-Api-Key": {"KEY"}}, code: api.CodeUnauthorized},
		{name: "identity headers", h: header{"X-Forwarded-User": {"admin"}, "X_role": {"admin"}}, code: api.CodeUnauthorized, nothing: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Credential(http.Header(c.h), c.path)
			if got != c.want {
				t.Errorf("credential is %q, want %q", got, c.want)
			}
			if c.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if e := api.AsError(err); err == nil || e.Code != c.code {
				t.Fatalf("error is %v, want %s", err, c.code)
			} else if strings.Contains(e.Message, "OTHER") {
				t.Errorf("the message repeats the credential: %s", e.Message)
			}
			if errors.Is(err, ErrNoCredential) != c.nothing {
				t.Errorf("ErrNoCredential: %v", !c.nothing)
			}
		})
	}
}

func TestNoCredentialNamesEveryCarrier(t *testing.T) {
	_, err := Credential(http.Header{}, "")
	for _, way := range []string{"Authorization: Bearer KEY", "x-api-key: KEY", "Basic", "/k/KEY/"} {
		if !strings.Contains(api.AsError(err).Message, way) {
			t.Errorf("the message does not name %s", way)
		}
	}
}

func FuzzCredential(f *testing.F) {
	for _, seed := range []string{"", "Bearer KEY", "bearer \tKEY", "Bearer a, Bearer b", basic("a:b"), "Basic =", "\t", "Bearer \x00", "Bearer \xff"} {
		f.Add(seed, "", "")
		f.Add("", seed, "KEY")
	}
	f.Fuzz(func(t *testing.T, authorization, apiKey, path string) {
		h := http.Header{}
		if authorization != "" {
			h.Set("Authorization", authorization)
		}
		if apiKey != "" {
			h.Set("X-Api-Key", apiKey)
		}
		text, err := Credential(h, path)
		if (text == "") == (err == nil) {
			t.Fatalf("credential %q with error %v", text, err)
		}
		if err == nil && path != "" && text != path {
			t.Errorf("path %q lost to %q", path, text)
		}
	})
}
