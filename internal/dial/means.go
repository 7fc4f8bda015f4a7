package dial

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// maxPEM limits how much of a file is read: bundles have some hundred kilobytes, and a path may be mistyped.
const maxPEM = 4 << 20

// Text is a PEM text, or the file that contains it.
type Text struct {
	PEM  string
	File string // read for each connection, so that a renewed file is used
	Name string // name of the setting or field, for errors
}

func (t Text) empty() bool { return t.PEM == "" && t.File == "" }

func (t Text) read() ([]byte, error) {
	if t.File == "" {
		return []byte(t.PEM), nil
	}
	f, err := os.Open(t.File)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", t.Name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", t.Name, err)
	}
	return text, nil
}

// Means are the settings for connections to servers. The zero value uses the defaults of the machine.
type Means struct {
	CA        Text // trusted CAs, instead of those of this machine
	Cert, Key Text // the client certificate
	Header    string
	Value     string
	Log       *slog.Logger // logs once if a renewed file cannot be used
}

// Access returns the Access of a target with these settings.
func (m Means) Access() Access {
	a := Access{Header: m.Header, Value: m.Value}
	if !m.CA.empty() || !m.Cert.empty() {
		a.TLS = (&trust{Means: m}).config
	}
	return a
}

// trust builds a configuration from the current texts.
type trust struct {
	Means

	mu     sync.Mutex
	read   [3][]byte
	now    *tls.Config
	failed string
}

// config reads the files again. If they cannot be used, it returns the last valid configuration.
func (t *trust) config() (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.refresh()
	if err == nil {
		t.failed = ""
		return t.now, nil
	}
	if t.now == nil {
		return nil, err
	}
	if text := err.Error(); text != t.failed && t.Log != nil {
		t.failed = text
		t.Log.Error("the changed certificates for Ollama servers cannot be used and the previous ones stay in use", "cause", text)
	}
	return t.now, nil
}

func (t *trust) refresh() error {
	var read [3][]byte
	same := t.now != nil
	for i, part := range []Text{t.CA, t.Cert, t.Key} {
		var err error
		if read[i], err = part.read(); err != nil {
			return err
		}
		same = same && bytes.Equal(read[i], t.read[i])
	}
	if same {
		return nil
	}
	config := &tls.Config{}
	if !t.CA.empty() {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(read[0]) {
			return fmt.Errorf("%s contains no certificate in PEM form", t.CA.Name)
		}
	}
	if !t.Cert.empty() {
		pair, err := tls.X509KeyPair(read[1], read[2])
		if err != nil {
			return errors.Join(fmt.Errorf("%s and %s must be a certificate and its own key, both in PEM form and without a passphrase", t.Cert.Name, t.Key.Name), err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	t.read, t.now = read, config
	return nil
}
