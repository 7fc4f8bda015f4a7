package dial

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Explain adds a remedy to the failure of a TLS connection. It returns other errors unchanged.
func Explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var plain tls.RecordHeaderError
	hint := ""
	switch {
	case errors.As(err, &unknown):
		hint = "set OLLAMA_CA to a PEM file with the certificate of its CA, or the certificate itself if it is self-signed; " +
			"for a server that an admin added, set its field ca"
	case errors.As(err, &name):
		hint = "its certificate is for another name: use that name in the address, or issue a certificate for this name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "its certificate has expired, or the clock of this machine is wrong: renew the certificate on the server"
	case errors.As(err, &plain):
		hint = "it does not use TLS on this port: use http:// in its address, or the port that uses TLS"
	case strings.Contains(err.Error(), "remote error: tls:"): // crypto/tls does not export the type
		hint = "if it asks for a client certificate, set OLLAMA_CLIENT_CERT and OLLAMA_CLIENT_KEY to PEM files; " +
			"for a server that an admin added, set its fields client_cert and client_key"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, hint)
}
