package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"ollama-api-service/internal/api"
)

// ErrNoCredential is the cause of Credential's error if the request contains no credential.
var ErrNoCredential = errors.New("no credential")

// carried is a text that a request carries in a place for keys. fault is not nil if the text cannot be used in this form.
type carried struct {
	text  string
	fault error
}

// mostCarried limits the texts of one request that are checked: each is a guess, and costs as much as one.
const mostCarried = 8

// Credential extracts the key text from a request. The carriers are Authorization (Bearer, the password of Basic, or the key without a
// scheme), x-api-key, api-key, and the key in the path /k/KEY/, which the caller passes as pathKey. An empty value is not a credential.
// Identify then decides whether the key is valid.
//
// Clients send placeholders next to the key that their user has set: "Bearer ollama", or the key of another service. A text that cannot
// be a key of this service is ignored if another carrier has one that can. passedOver contains these texts for the throttle, because a
// client with a valid key could use them for guesses.
//
// It returns CodeUnauthorized without any credential (ErrNoCredential) or with an unusable one. It returns CodeBadRequest for two
// different texts that could both be keys, and for a repeated header, because a proxy and this service might choose different ones. With
// an error, it also returns the text, if any; of two texts that could both be keys, both are in passedOver.
func (a *Authenticator) Credential(h http.Header, pathKey string) (text string, passedOver []string, err error) {
	var room [4]carried
	found := carriers(room[:0], h, pathKey)
	switch len(found) {
	case 0:
		return "", nil, api.Wrap(api.CodeUnauthorized, ErrNoCredential, "this request contains no API key: send it as \"Authorization: Bearer KEY\" "+
			"or \"x-api-key: KEY\", as the password of HTTP Basic, or in the path as /k/KEY/api/... for clients that cannot send a header")
	case 1:
		return found[0].text, nil, found[0].fault
	}
	if len(found) > mostCarried {
		return "", nil, errAmbiguous()
	}
	chosen := -1
	for i, c := range found {
		switch {
		case !a.couldBeKey(c.text):
			passedOver = append(passedOver, c.text)
		case chosen >= 0 && found[chosen].text != c.text:
			return "", append(passedOver, found[chosen].text, c.text), errAmbiguous()
		case chosen < 0 || found[chosen].fault != nil:
			chosen = i
		}
	}
	return found[max(chosen, 0)].text, passedOver, found[max(chosen, 0)].fault
}

// couldBeKey reports whether a text has the form and the checksum of a key, or is one of the static keys. It does not read the store,
// because the answer must not depend on which keys exist.
func (a *Authenticator) couldBeKey(text string) bool {
	if len(text) > maxCredential {
		return false
	}
	if _, ok := Parse(text); ok {
		return true
	}
	m := a.secret.current.sign(text)
	return matchStatic(*a.statics.Load(), &m) >= 0
}

// carriers appends the text of each carrier in the request.
func carriers(found []carried, h http.Header, pathKey string) []carried {
	if pathKey != "" {
		found = append(found, carried{text: pathKey})
	}
	before := len(found)
	for _, value := range h["Authorization"] {
		found = authorization(found, value)
	}
	refuseDoubled(found[before:])
	for _, name := range [...]string{"X-Api-Key", "Api-Key"} {
		before = len(found)
		for _, value := range h[name] {
			if scheme, text, _ := strings.Cut(value, " "); strings.EqualFold(scheme, "Bearer") {
				found = append(found, carried{text, errBearer()})
			} else if value != "" {
				found = append(found, carried{text: value})
			}
		}
		refuseDoubled(found[before:])
	}
	return found
}

// refuseDoubled marks the values of a repeated header: two readers might choose different ones.
func refuseDoubled(found []carried) {
	if len(found) < 2 {
		return
	}
	for i := range found {
		found[i].fault = errAmbiguous()
	}
}

// authorization reads the value of an Authorization header. The scheme is case-insensitive (RFC 9110, 11.1). One extra space or tab
// before the key is accepted, because people paste it.
func authorization(found []carried, value string) []carried {
	scheme, rest := value, ""
	if end := strings.IndexAny(value, " \t"); end >= 0 {
		scheme, rest = value[:end], value[end+1:]
		if rest != "" && (rest[0] == ' ' || rest[0] == '\t') {
			rest = rest[1:]
		}
	}
	bearer, basic := strings.EqualFold(scheme, "Bearer"), strings.EqualFold(scheme, "Basic")
	switch {
	case value == "", rest == "" && (bearer || basic):
		return found
	case rest == "":
		return appendKeys(found, value, nil)
	case bearer:
		if again, inner, _ := strings.Cut(rest, " "); strings.EqualFold(again, "Bearer") {
			return appendKeys(found, inner, errTwice())
		}
		return appendKeys(found, rest, nil)
	case basic:
		if c := basicPassword(rest); c.text != "" {
			found = append(found, c)
		}
		return found
	}
	return append(found, carried{rest, errScheme()})
}

// appendKeys appends the text of a header. Keys contain no comma: a comma means that a proxy has joined two headers.
func appendKeys(found []carried, text string, fault error) []carried {
	if strings.IndexByte(text, ',') < 0 {
		return append(found, carried{text, fault})
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if scheme, rest, _ := strings.Cut(part, " "); strings.EqualFold(scheme, "Bearer") {
			part = rest
		}
		found = append(found, carried{part, errAmbiguous()})
	}
	return found
}

func basicPassword(encoded string) carried {
	pair, err := base64.StdEncoding.DecodeString(encoded)
	user, password, _ := strings.Cut(string(pair), ":")
	switch {
	case err != nil:
		return carried{encoded, errBasic()}
	case password == "":
		return carried{user, errBasic()}
	}
	return carried{text: password}
}

func errBasic() error {
	return api.Errorf(api.CodeUnauthorized, "HTTP Basic needs the API key as its password, with any user name")
}

func errScheme() error {
	return api.Errorf(api.CodeUnauthorized, "the Authorization header does not have the form \"Bearer KEY\"")
}

func errTwice() error {
	return api.Errorf(api.CodeUnauthorized,
		"the Authorization header contains Bearer twice: most clients add the word themselves, so configure the key without it")
}

func errBearer() error {
	return api.Errorf(api.CodeUnauthorized, "the word Bearer belongs in the Authorization header: send only the key in this header")
}

func errAmbiguous() error {
	return api.Errorf(api.CodeBadRequest, "this request contains more than one credential: send one API key, in one place")
}
