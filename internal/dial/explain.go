package dial

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Explain adds to the failure of a connection with TLS what to do about it. Every other error stays as it is.
func Explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var plain tls.RecordHeaderError
	hint := ""
	switch {
	case errors.As(err, &unknown):
		hint = "set OLLAMA_CA to a PEM file with the certificate of its CA, or the certificate itself if it is self-signed; " +
			"for a server that was added over the API, set its field ca"
	case errors.As(err, &name):
		hint = "its certificate is for another name: name the server as the certificate does, or issue one for this name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "its certificate is out of date, or the clock of this machine is wrong: renew it there"
	case errors.As(err, &plain):
		hint = "it speaks no TLS on this port: write http:// in its address, or name the port that does"
	case strings.Contains(err.Error(), "remote error: tls:"): // crypto/tls does not export the type
		hint = "if it asks for a client certificate, set OLLAMA_CLIENT_CERT and OLLAMA_CLIENT_KEY to PEM files; " +
			"for a server that was added over the API, set its fields client_cert and client_key"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, hint)
}
