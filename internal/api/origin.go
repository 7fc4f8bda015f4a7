package api

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Origin is a pattern of origins (RFC 6454) whose pages may call the service: a scheme, a host and a port, as browsers send them in the
// Origin header. A star is the first label of the host, the whole host, or the port. The zero Origin matches none.
type Origin struct{ scheme, host, port string }

const (
	anyOrigin  = "*"    // as scheme: every origin except null
	nullOrigin = "null" // as scheme: sandboxed frames, local files and other pages without an origin
)

var (
	originScheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*$`)
	originHost   = regexp.MustCompile(`^(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*)$`)
	defaultPort  = map[string]string{"http": "80", "https": "443"}
)

// ParseOrigin reads a pattern: scheme://host[:port], "*" for all origins except null, or "null". Its error shows the right spelling.
func ParseOrigin(text string) (Origin, error) {
	text = strings.ToLower(text)
	if text == anyOrigin || text == nullOrigin || text == "file://" {
		return Origin{scheme: strings.TrimSuffix(text, "://")}, nil
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || !originScheme.MatchString(scheme) {
		return Origin{}, errors.New("an origin is a scheme and a host, like https://chat.example.net or http://localhost:3000")
	}
	if authority, path, _ := strings.Cut(rest, "/"); authority != rest {
		if path == "" && !strings.Contains(authority, "@") {
			return Origin{}, fmt.Errorf("an origin has no slash at its end: write %s://%s", scheme, authority)
		}
		return Origin{}, errors.New("an origin has no path: write only the scheme, the host and the port")
	}
	o := Origin{scheme: scheme, host: rest}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, ']') {
		o.host, o.port = rest[:i], rest[i+1:]
		if n, err := strconv.Atoi(o.port); o.port != "*" && (err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != o.port) {
			return Origin{}, fmt.Errorf("a port is a number, or * for every port: write %s://HOST:3000 or %s://HOST:*", scheme, scheme)
		}
	}
	if o.port == defaultPort[scheme] {
		o.port = "" // browsers leave it out
	}
	return o, o.checkHost()
}

func (o Origin) checkHost() error {
	bare := strings.Trim(o.host, "*")
	switch {
	case o.host == "*", originHost.MatchString(strings.TrimPrefix(o.host, "*.")):
		return nil
	case o.host == bare+"*" && originHost.MatchString(bare):
		return fmt.Errorf("a star after a host would match other hosts: for every port write %s://%s:*", o.scheme, bare)
	case o.host == "*"+bare && originHost.MatchString(bare):
		return fmt.Errorf("a star is a whole label: for the hosts below it write %s://*.%s", o.scheme, bare)
	case bare == "" && o.host != "" || strings.Contains(o.host, "*") && originHost.MatchString(strings.ReplaceAll(o.host, "*", "x")):
		return errors.New("a star is the first label of a host (https://*.example.net), the whole host (chrome-extension://*) or the port (http://localhost:*)")
	}
	return errors.New("the host of an origin is a name or an address, like https://chat.example.net or http://[::1]:3000")
}

// Admits reports whether the Origin header of a browser matches.
func (o Origin) Admits(origin string) bool {
	if origin == nullOrigin || o.scheme == nullOrigin {
		return origin == nullOrigin && o.scheme == nullOrigin
	}
	if origin == "file://" {
		return o.scheme == "file" || o.scheme == anyOrigin
	}
	page, err := ParseOrigin(origin)
	switch {
	case err != nil, strings.Contains(origin, "*"):
		return false
	case o.scheme == anyOrigin:
		return true
	case page.scheme != o.scheme, page.port != o.port && o.port != "*":
		return false
	}
	below, star := strings.CutPrefix(o.host, "*")
	return page.host == o.host || star && len(page.host) > len(below) && strings.HasSuffix(page.host, below)
}
