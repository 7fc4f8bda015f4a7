package api

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Limits of the fields of a backend.
const (
	MaxSlots  = 10_000
	MinWeight = 0.01
	MaxWeight = 100
)

// Backend is an Ollama server from OLLAMA_BASE_URL or added by an admin.
type Backend struct {
	Name     string
	URL      *url.URL // only scheme and host
	Slots    int      // concurrent requests for each model; 0: found by observation
	Total    int      // concurrent requests for all models together; 0: no limit
	Weight   float64  // speed relative to a backend of weight 1; 0 means 1
	Draining bool     // it gets no new requests
	AddedAt  time.Time
	Reach    Reach
}

// BackendPatch is a change of a backend. A nil field does not change.
type BackendPatch struct {
	Slots, Total *int
	Weight       *float64
	Drain        *bool
	// Fields of Reach.
	CA, ClientCert, ClientKey, AuthHeader *string
}

// Apply changes the backend.
func (p BackendPatch) Apply(b *Backend) {
	set(&b.Slots, p.Slots)
	set(&b.Total, p.Total)
	set(&b.Weight, p.Weight)
	set(&b.Draining, p.Drain)
	set(&b.Reach.CA, p.CA)
	set(&b.Reach.ClientCert, p.ClientCert)
	set(&b.Reach.ClientKey, p.ClientKey)
	set(&b.Reach.AuthHeader, p.AuthHeader)
}

func set[T any](field *T, to *T) {
	if to != nil {
		*field = *to
	}
}

var backendName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ValidBackendName reports whether a text can be the name of a backend, which appears in headers, paths and metrics.
func ValidBackendName(s string) bool { return backendName.MatchString(s) }

// Validate returns CodeBadRequest for an invalid field. It expects a URL from ParseBackendURL.
func (b Backend) Validate() error {
	switch {
	case !ValidBackendName(b.Name):
		return Errorf(CodeBadRequest, "name must be 1 to 64 letters, digits, dots, dashes or underscores, like gpu1")
	case b.Slots < 0 || b.Slots > MaxSlots:
		return Errorf(CodeBadRequest, "slots must be from 0 (found by observation) to %d", MaxSlots)
	case b.Total < 0 || b.Total > MaxSlots:
		return Errorf(CodeBadRequest, "total must be from 0 (no limit) to %d", MaxSlots)
	case b.Weight != 0 && !(b.Weight >= MinWeight && b.Weight <= MaxWeight):
		return Errorf(CodeBadRequest, "weight must be from %v to %v, or 0 for 1", MinWeight, MaxWeight)
	}
	return b.Reach.Validate(b.URL != nil && b.URL.Scheme == "https")
}

// Reaches reports whether the patch changes how the backend is reached.
func (p BackendPatch) Reaches() bool {
	return p.CA != nil || p.ClientCert != nil || p.ClientKey != nil || p.AuthHeader != nil
}

// ParseBackendURL reads the address of an Ollama server: scheme, host and port. It returns the query for the caller to read. The texts of
// its errors continue a sentence that starts with the name of the input, and contain nothing of the input.
func ParseBackendURL(text string) (base *url.URL, query url.Values, err error) {
	p, err := url.Parse(text)
	if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Opaque != "" || p.Hostname() == "" {
		return nil, nil, errors.New("must be an http or https address like http://127.0.0.1:11434")
	}
	if p.User != nil {
		return nil, nil, errors.New("must not contain a user or password: use OLLAMA_AUTH_HEADER for those")
	}
	if p.Path != "" && p.Path != "/" || strings.Contains(text, "#") {
		return nil, nil, errors.New("must be only the address of the server, like http://127.0.0.1:11434, without a path")
	}
	if port := p.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, nil, errors.New("must have a port from 1 to 65535, like http://127.0.0.1:11434")
		}
	} else if strings.HasSuffix(p.Host, ":") {
		return nil, nil, errors.New("must have a port after its colon, like http://127.0.0.1:11434")
	}
	if err := checkBackendHost(p.Hostname()); err != nil {
		return nil, nil, err
	}
	if query, err = url.ParseQuery(p.RawQuery); err != nil {
		return nil, nil, errors.New("must have nothing after its port except ?slots=4&total=8&weight=1&name=gpu1")
	}
	return &url.URL{Scheme: p.Scheme, Host: strings.ToLower(p.Host)}, query, nil
}

// clouds are the metadata addresses, from which every program on a cloud machine can read the machine's credentials over HTTP.
var clouds = []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254")}

var hostName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?$`)

func checkBackendHost(host string) error {
	cloud := errors.New("must not be the metadata address of a cloud: name your Ollama server")
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	a, err := netip.ParseAddr(host)
	if err == nil {
		for _, m := range clouds {
			if a.Unmap().WithZone("") == m {
				return cloud
			}
		}
		return nil
	}
	if host == "metadata.google.internal" {
		return cloud
	}
	// Some resolvers read 2852039166, 0xa9fea9fe and 169.16689662 as addresses. Names do not end in a number.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || !hostName.MatchString(host) {
		return errors.New("must name a host or an address in full, like http://gpu.example.net:11434 or http://10.0.0.7:11434")
	}
	return nil
}

// ReadQuery sets the fields from the query of an address: slots, total, weight and name. It refuses other names, which a later version
// may use. Its errors are like those of ParseBackendURL.
func (b *Backend) ReadQuery(query url.Values) error {
	for name, values := range query {
		if len(values) > 1 {
			return errors.New("contains slots, total, weight or name twice")
		}
		value := values[0]
		var err error
		switch name {
		case "slots":
			b.Slots, err = count(name, value)
		case "total":
			b.Total, err = count(name, value)
		case "weight":
			b.Weight, err = strconv.ParseFloat(value, 64)
			if err != nil || !(b.Weight >= MinWeight && b.Weight <= MaxWeight) {
				err = fmt.Errorf("must have a weight from %v to %v, like ?weight=2", MinWeight, MaxWeight)
			}
		case "name":
			if b.Name = value; !ValidBackendName(value) {
				err = errors.New("must have a name of 1 to 64 letters, digits, dots, dashes or underscores, like ?name=gpu1")
			}
		default:
			err = errors.New("must have nothing in its query except ?slots=4&total=8&weight=1&name=gpu1")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func count(name, value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > MaxSlots {
		return 0, fmt.Errorf("must have %s from 1 to %d, like ?%s=4", name, MaxSlots, name)
	}
	return n, nil
}
