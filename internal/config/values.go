package config

import (
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"ollama-api-service/internal/api"
)

// Hidden is a text that never prints: string(h) is the value.
type Hidden string

// String says only whether there is a value.
func (h Hidden) String() string {
	if h == "" {
		return ""
	}
	return "(set)"
}

// GoString is String, for %#v.
func (h Hidden) GoString() string { return h.String() }

// LogValue is String, for log lines.
func (h Hidden) LogValue() slog.Value { return slog.StringValue(h.String()) }

// MarshalText is String, for JSON.
func (h Hidden) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Upstream is the Ollama server.
type Upstream struct {
	URL   *url.URL // scheme and host alone
	Name  string
	Slots int // requests at one time
}

// String is the address as it may be written in OLLAMA_BASE_URL.
func (u Upstream) String() string {
	if u.URL == nil {
		return ""
	}
	return u.URL.String() + "?slots=" + strconv.Itoa(u.Slots) + "&name=" + u.Name
}

var upstreamName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

const (
	defaultSlots = 4
	maxSlots     = 10_000
)

// UnmarshalText reads an address like http://127.0.0.1:11434?slots=4&name=gpu1.
func (u *Upstream) UnmarshalText(text []byte) error {
	s := string(text)
	if strings.Contains(s, ",") {
		return mend("must be one address: this version serves one Ollama server, not a list")
	}
	p, err := url.Parse(s)
	if err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Opaque != "" || p.Hostname() == "" {
		return mend("must be an http or https address like http://127.0.0.1:11434")
	}
	if p.User != nil {
		return mend("must not hold a user or password: use OLLAMA_AUTH_HEADER for those")
	}
	if p.Path != "" && p.Path != "/" || strings.Contains(s, "#") {
		return mend("must be the address of the server alone, like http://127.0.0.1:11434, without a path")
	}
	if port := p.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return mend("must have a port from 1 to 65535, like http://127.0.0.1:11434")
		}
	} else if strings.HasSuffix(p.Host, ":") {
		return mend("must have a port after its colon, like http://127.0.0.1:11434")
	}
	if err := checkUpstreamHost(p.Hostname()); err != nil {
		return err
	}
	*u = Upstream{URL: &url.URL{Scheme: p.Scheme, Host: strings.ToLower(p.Host)}, Name: "ollama", Slots: defaultSlots}
	return u.readQuery(p.RawQuery)
}

// readQuery reads slots and name. What else may stand there one day must not be taken for obeyed today.
func (u *Upstream) readQuery(raw string) error {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return mend("must not have more after its port than ?slots=4&name=ollama")
	}
	for name, values := range query {
		if len(values) > 1 {
			return mend("says slots or name twice")
		}
		switch name {
		case "slots":
			n, err := strconv.Atoi(values[0])
			if err != nil || n < 1 || n > maxSlots {
				return mend("must have slots from 1 to " + strconv.Itoa(maxSlots) + ", like ?slots=4")
			}
			u.Slots = n
		case "name":
			if !upstreamName.MatchString(values[0]) {
				return mend("must have a name of 1 to 64 letters, digits, dots, dashes or underscores, like ?name=gpu1")
			}
			u.Name = values[0]
		default:
			return mend("must not have more in its query than ?slots=4&name=ollama")
		}
	}
	return nil
}

// metadata are the addresses at which clouds hand out the machine's credentials to whoever asks over HTTP.
var metadata = []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254")}

func checkUpstreamHost(host string) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	a, err := netip.ParseAddr(host)
	if err == nil {
		for _, m := range metadata {
			if a.Unmap().WithZone("") == m {
				return mend("must not be the metadata address of a cloud: name your Ollama server")
			}
		}
		return nil
	}
	if host == "metadata.google.internal" {
		return mend("must not be the metadata address of a cloud: name your Ollama server")
	}
	// 2852039166, 0xa9fea9fe and 169.16689662 are addresses to some resolvers: names do not end in a number.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || !hostName.MatchString(host) {
		return mend("must name a host or an address in full, like http://gpu.example.net:11434 or http://10.0.0.7:11434")
	}
	return nil
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

// AuthHeader is a header for the Ollama server; an empty Name is none.
type AuthHeader struct {
	Name  string
	Value Hidden
}

// String leaves the value out.
func (h AuthHeader) String() string {
	if h.Name == "" {
		return ""
	}
	return h.Name + ": (set)"
}

// ownHeaders frame the request or are written by the gateway itself.
var ownHeaders = map[string]bool{
	"host": true, "connection": true, "content-length": true, "transfer-encoding": true, "te": true, "trailer": true,
	"upgrade": true, "expect": true, "content-type": true, "content-encoding": true, "accept-encoding": true,
	"keep-alive": true, "proxy-connection": true,
}

// headerName is RFC 9110's token.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")

// visible says whether s is visible ASCII, and what more allows.
func visible(s, more string) bool {
	for i := range len(s) {
		if (s[i] <= ' ' || s[i] > '~') && strings.IndexByte(more, s[i]) < 0 {
			return false
		}
	}
	return true
}

// UnmarshalText reads "Name: value".
func (h *AuthHeader) UnmarshalText(text []byte) error {
	name, value, ok := strings.Cut(string(text), ":")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !ok || value == "" || !headerName.MatchString(name) || !visible(value, " \t") {
		return mend("must be a header like Authorization: Bearer abc")
	}
	if ownHeaders[strings.ToLower(name)] {
		return mend("must not be a header that the gateway writes itself; usual is Authorization")
	}
	h.Name, h.Value = name, Hidden(value)
	return nil
}

// Size is a number of bytes.
type Size int64

// UnmarshalText reads bytes, or a number with a unit: KB, MB, GB count by 1000, KiB, MiB, GiB by 1024.
func (s *Size) UnmarshalText(text []byte) error {
	const why = mend("must be a size like 64MiB, 10MB or a number of bytes")
	t := strings.TrimSpace(string(text))
	digits := strings.TrimRight(t, "BKMGbkmgi ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return why
	}
	factor, ok := map[string]int64{
		"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
	}[strings.ToLower(strings.TrimSpace(t[len(digits):]))]
	if !ok || n > math.MaxInt64/factor {
		return why
	}
	*s = Size(n * factor)
	return nil
}

// Networks are address ranges.
type Networks []netip.Prefix

// UnmarshalText reads addresses and networks, separated by commas.
func (n *Networks) UnmarshalText(text []byte) error {
	*n = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		var one api.Network
		if err := one.UnmarshalText([]byte(part)); err != nil {
			return mend("must be addresses or networks like 10.0.0.7,172.16.0.0/12")
		}
		p := one.Prefix
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		// 10.0.0.0/8 and fc00::/7 are the widest private networks.
		if a := p.Addr(); a.Is4() && p.Bits() < 8 || a.Is6() && p.Bits() < 7 {
			return mend("must not trust (nearly) everybody: any client could then claim any address; name the networks of your proxies")
		}
		*n = append(*n, p)
	}
	return nil
}

// Aliases are other names for models.
type Aliases api.Aliases

// UnmarshalText reads aliases, separated by commas.
func (a *Aliases) UnmarshalText(text []byte) error {
	*a = nil
	for part := range strings.SplitSeq(string(text), ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		one, err := api.ParseAlias(part)
		if err != nil {
			return mend("must be names and models like claude-*=qwen3-coder,gpt-4o=llama3.2")
		}
		*a = append(*a, one)
	}
	return nil
}

// Policies are the operator's answers to what requests may set.
type Policies []api.ModelPolicy

// UnmarshalText reads policies, separated by commas.
func (p *Policies) UnmarshalText(text []byte) error {
	*p = nil
	for part := range strings.SplitSeq(string(text), ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		one, err := api.ParseModelPolicy(part)
		if err != nil {
			return mend("must be field=action or pattern field=action, like qwen3:* num_ctx=set:16384,raw=refuse; docs/policy.md lists the fields and actions")
		}
		*p = append(*p, one)
	}
	return nil
}

// Hosts are names with or without a port, in lower case.
type Hosts []string

var hostPort = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

// UnmarshalText reads hosts, separated by commas.
func (h *Hosts) UnmarshalText(text []byte) error {
	*h = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.ToLower(strings.TrimSpace(part))
		if part == "" {
			continue
		}
		if !hostPort.MatchString(part) {
			return mend("must be hosts without a scheme or path, like hf.co,registry.example.net:5000")
		}
		*h = append(*h, part)
	}
	return nil
}

// Domains are names in the DNS, in lower case.
type Domains []string

var domain = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z]([a-z0-9-]*[a-z0-9])?$`)

// UnmarshalText reads names, separated by commas.
func (d *Domains) UnmarshalText(text []byte) error {
	*d = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(part)), ".")
		if part == "" {
			continue
		}
		if !domain.MatchString(part) || len(part) > 253 {
			return mend("must be whole names like gateway.example.net: without a scheme, a port or a star, and no address")
		}
		*d = append(*d, part)
	}
	return nil
}

// Email is an address for letters.
type Email string

var email = regexp.MustCompile(`^[^@\s,]+@[^@\s,]+$`)

// UnmarshalText reads one address.
func (e *Email) UnmarshalText(text []byte) error {
	if !email.Match(text) {
		return mend("must be one address like admin@example.net")
	}
	*e = Email(text)
	return nil
}

// Directory is the https address that an ACME client begins at.
type Directory string

// UnmarshalText reads an address.
func (d *Directory) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return mend("must be the https address of the CA's directory, like https://ca.example.net/acme/directory")
	}
	*d = Directory(text)
	return nil
}

// Origins are schemes with hosts, as browsers send them, or a star.
type Origins []string

var origin = regexp.MustCompile(`^(https?|app|capacitor|tauri|vscode-webview)://[A-Za-z0-9.*-]+(:[0-9]{1,5})?$`)

// UnmarshalText reads origins, separated by commas.
func (o *Origins) UnmarshalText(text []byte) error {
	*o = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		switch {
		case part == "":
		case part == "*", origin.MatchString(part) && strings.Count(part, "*") < 2:
			*o = append(*o, part)
		default:
			return mend("must be origins without a path, like https://chat.example.net,http://localhost:3000, or *")
		}
	}
	return nil
}

// LogFormat is json or text.
type LogFormat string

// The log formats.
const (
	LogJSON LogFormat = "json"
	LogText LogFormat = "text"
)

// UnmarshalText reads json or text.
func (f *LogFormat) UnmarshalText(text []byte) error {
	switch v := LogFormat(strings.ToLower(string(text))); v {
	case LogJSON, LogText:
		*f = v
		return nil
	}
	return mend("must be json or text")
}
