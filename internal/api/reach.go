package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"regexp"
	"strings"
)

// The settings for connections to all Ollama servers. A field of Reach may contain one of these names.
const (
	SettingCA         = "OLLAMA_CA"
	SettingClientCert = "OLLAMA_CLIENT_CERT"
	SettingClientKey  = "OLLAMA_CLIENT_KEY"
	SettingAuthHeader = "OLLAMA_AUTH_HEADER"
)

// ReachNone in a field of Reach disables the setting for this server.
const ReachNone = "none"

const maxPEMText = 32 << 10

// Reach is how a backend is reached: PEM texts and a header like "Authorization: Bearer abc". A field may also be the name of its
// setting, or ReachNone; an empty field means the setting. It never contains a path, because an admin's key must not read files. Printing
// it does not show the values.
type Reach struct{ CA, ClientCert, ClientKey, AuthHeader string }

// fields returns the fields by the name of their setting.
func (r *Reach) fields() map[string]*string {
	return map[string]*string{
		SettingCA: &r.CA, SettingClientCert: &r.ClientCert, SettingClientKey: &r.ClientKey, SettingAuthHeader: &r.AuthHeader,
	}
}

// Shown returns r with "set" in place of each value.
func (r Reach) Shown() Reach {
	for setting, field := range r.fields() {
		if *field != "" && *field != ReachNone && *field != setting {
			*field = "set"
		}
	}
	return r
}

// String returns the fields without their values.
func (r Reach) String() string {
	s := r.Shown()
	return strings.Join([]string{"ca=" + s.CA, "client_cert=" + s.ClientCert, "client_key=" + s.ClientKey, "auth_header=" + s.AuthHeader}, " ")
}

// GoString is String for %#v.
func (r Reach) GoString() string { return r.String() }

// LogValue is String for log lines.
func (r Reach) LogValue() slog.Value { return slog.StringValue(r.String()) }

// MarshalJSON is String as JSON, for code that prints a whole backend.
func (r Reach) MarshalJSON() ([]byte, error) { return []byte(`"` + r.String() + `"`), nil }

// given reports whether a field contains its own text.
func given(field, setting string) bool { return field != "" && field != ReachNone && field != setting }

// Validate returns CodeBadRequest for an invalid field. Its messages contain nothing of the values.
func (r Reach) Validate(https bool) error {
	own := given(r.CA, SettingCA) || given(r.ClientCert, SettingClientCert) || given(r.ClientKey, SettingClientKey)
	switch {
	case own && !https:
		return Errorf(CodeBadRequest, "ca, client_cert and client_key need a url with https: leave them out, or write https://")
	case given(r.CA, SettingCA) && !certificates(r.CA):
		return Errorf(CodeBadRequest, "ca must be certificates in PEM form (-----BEGIN CERTIFICATE-----), the name %s, or none; a path is not accepted", SettingCA)
	case given(r.ClientCert, SettingClientCert) != given(r.ClientKey, SettingClientKey):
		return Errorf(CodeBadRequest, "client_cert and client_key belong together: give both as PEM texts, or name the settings %s and %s", SettingClientCert, SettingClientKey)
	}
	if given(r.ClientCert, SettingClientCert) {
		if _, err := tls.X509KeyPair([]byte(r.ClientCert), []byte(r.ClientKey)); err != nil || len(r.ClientCert)+len(r.ClientKey) > 2*maxPEMText {
			return Errorf(CodeBadRequest, "client_cert and client_key must be a certificate and its own key in PEM form, without a passphrase; a path is not accepted")
		}
	}
	if given(r.AuthHeader, SettingAuthHeader) {
		if _, _, err := ParseHeader(r.AuthHeader); err != nil {
			return Errorf(CodeBadRequest, "auth_header %s; the name %s or none is also valid", err, SettingAuthHeader)
		}
	}
	return nil
}

func certificates(text string) bool {
	return len(text) <= maxPEMText && x509.NewCertPool().AppendCertsFromPEM([]byte(text))
}

// ownHeaders frame a request or are set by the gateway itself.
var ownHeaders = map[string]bool{
	"host": true, "connection": true, "content-length": true, "transfer-encoding": true, "te": true, "trailer": true,
	"upgrade": true, "expect": true, "content-type": true, "content-encoding": true, "accept-encoding": true,
	"keep-alive": true, "proxy-connection": true,
}

// headerName is a token of RFC 9110.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")

// ValidHeaderName reports whether a credential may be sent in a header of this name.
func ValidHeaderName(name string) bool {
	return headerName.MatchString(name) && !ownHeaders[strings.ToLower(name)]
}

// ParseHeader reads "Name: value". The text of its error continues a sentence that starts with the name of the input, and contains
// nothing of the input.
func ParseHeader(text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, ":")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	plain := func(c rune) bool { return c < ' ' && c != '\t' || c > '~' }
	if !ok || value == "" || !headerName.MatchString(name) || strings.ContainsFunc(value, plain) {
		return "", "", errors.New("must be a header like Authorization: Bearer abc")
	}
	if ownHeaders[strings.ToLower(name)] {
		return "", "", errors.New("must not be a header that the gateway sets itself; Authorization is the usual one")
	}
	return name, value, nil
}
