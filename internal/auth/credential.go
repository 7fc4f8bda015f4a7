package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"ollama-api-service/internal/api"
)

// ErrNoCredential is the cause of Credential's error when the request carries no credential at all.
var ErrNoCredential = errors.New("no credential")

// Credential takes the key text out of a request: Authorization (Bearer, or the password of Basic), x-api-key, or the key of
// the path /k/KEY/ which the caller has cut out. It only looks at the shape; Identify says whether the key is good.
//
// It returns CodeUnauthorized for none (ErrNoCredential) or an unusable one, and CodeBadRequest for several that differ and
// for a doubled Authorization: which of two was meant must not depend on who reads first, a proxy or this service.
func Credential(h http.Header, pathKey string) (string, error) {
	found := pathKey
	for _, carrier := range []struct {
		name string
		read func(string) (string, error)
	}{
		{"Authorization", authorization},
		{"X-Api-Key", apiKeyHeader},
	} {
		values := h[carrier.name]
		if len(values) == 0 {
			continue
		}
		if len(values) > 1 {
			return "", errAmbiguous()
		}
		text, err := carrier.read(values[0])
		if err != nil {
			return "", err
		}
		if found != "" && found != text {
			return "", errAmbiguous()
		}
		found = text
	}
	if found == "" {
		return "", api.Wrap(api.CodeUnauthorized, ErrNoCredential, "this request carries no API key: send it as \"Authorization: Bearer KEY\" "+
			"or \"x-api-key: KEY\", as the password of HTTP Basic, or in the path as /k/KEY/api/... for clients that cannot send a header")
	}
	return found, nil
}

func apiKeyHeader(value string) (string, error) {
	if value == "" {
		return "", api.Errorf(api.CodeUnauthorized, "the x-api-key header is empty: send \"x-api-key: KEY\"")
	}
	return value, nil
}

// authorization reads the value of an Authorization header. The scheme has no case (RFC 9110, 11.1); one more space or tab
// before the key is what people paste.
func authorization(value string) (string, error) {
	end := strings.IndexAny(value, " \t")
	if end < 0 {
		return "", errScheme()
	}
	scheme, rest := value[:end], value[end+1:]
	if rest != "" && (rest[0] == ' ' || rest[0] == '\t') {
		rest = rest[1:]
	}
	if rest == "" {
		return "", errScheme()
	}
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		// Two headers that a proxy joined: no key holds a comma.
		if strings.IndexByte(rest, ',') >= 0 {
			return "", errAmbiguous()
		}
		return rest, nil
	case strings.EqualFold(scheme, "Basic"):
		pair, err := base64.StdEncoding.DecodeString(rest)
		_, password, colon := strings.Cut(string(pair), ":")
		if err != nil || !colon || password == "" {
			return "", api.Errorf(api.CodeUnauthorized, "HTTP Basic needs the API key as its password, with any user name")
		}
		return password, nil
	}
	return "", errScheme()
}

func errScheme() error {
	return api.Errorf(api.CodeUnauthorized, "the Authorization header is not of the form \"Bearer KEY\"")
}

func errAmbiguous() error {
	return api.Errorf(api.CodeBadRequest, "this request carries more than one credential: send one API key, in one place")
}
