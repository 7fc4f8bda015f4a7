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

// Hidden is a text that is never printed. string(h) is the value.
type Hidden string

// String shows only whether there is a value.
func (h Hidden) String() string {
	if h == "" {
		return ""
	}
	return "(set)"
}

// GoString is String for %#v.
func (h Hidden) GoString() string { return h.String() }

// LogValue is String for log lines.
func (h Hidden) LogValue() slog.Value { return slog.StringValue(h.String()) }

// MarshalText is String for JSON.
func (h Hidden) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Backends are the Ollama servers.
type Backends []api.Backend

// String returns the addresses in the syntax of OLLAMA_BASE_URL.
func (b Backends) String() string {
	var list []string
	for _, one := range b {
		text := one.URL.String() + "?"
		if one.Slots > 0 {
			text += "slots=" + strconv.Itoa(one.Slots) + "&"
		}
		if one.Total > 0 {
			text += "total=" + strconv.Itoa(one.Total) + "&"
		}
		if one.Weight > 0 {
			text += "weight=" + strconv.FormatFloat(one.Weight, 'g', -1, 64) + "&"
		}
		list = append(list, text+"name="+one.Name)
	}
	return strings.Join(list, ",")
}

// UnmarshalText reads addresses like http://127.0.0.1:11434?slots=4&name=gpu1, separated by commas.
func (b *Backends) UnmarshalText(text []byte) error {
	*b = nil
	names, addresses, named := map[string]bool{}, map[string]bool{}, false
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		base, query, err := api.ParseBackendURL(part)
		if err != nil {
			return invalid("must be valid: " + err.Error())
		}
		one := api.Backend{URL: base, Name: derivedName(base)}
		if err := one.ReadQuery(query); err != nil {
			return invalid(err.Error())
		}
		*b = append(*b, one)
		if names[one.Name] {
			return invalid("uses one name for two servers: give each its own name, like ?name=gpu1")
		}
		if addresses[base.Host] {
			return invalid("contains one server twice: remove one of them")
		}
		names[one.Name], addresses[base.Host] = true, true
		named = query.Has("name")
	}
	switch {
	case len(*b) == 1 && !named:
		(*b)[0].Name = "ollama" // the name of a single server in the usage records
	case len(*b) == 0:
		return invalid("must be one or several http or https addresses like http://127.0.0.1:11434")
	}
	return nil
}

// ollamaPort is the default port of Ollama.
const ollamaPort = "11434"

// derivedName returns the host of an address, and its port unless it is Ollama's default. It does not depend on the other servers, so
// that a server keeps its name in usage records when servers are added or removed.
func derivedName(base *url.URL) string {
	name := strings.Map(func(r rune) rune {
		if r == ':' || r == '%' {
			return '-' // in IPv6 addresses
		}
		return r
	}, base.Hostname())
	if port := base.Port(); port != "" && port != ollamaPort {
		name += "-" + port
	}
	return name[:min(len(name), 64)]
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

// AuthHeader is a header for the Ollama server. An empty Name means no header.
type AuthHeader struct {
	Name  string
	Value Hidden
}

// String omits the value.
func (h AuthHeader) String() string {
	if h.Name == "" {
		return ""
	}
	return h.Name + ": (set)"
}

// visible reports whether s contains only visible ASCII and the characters in more.
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
	name, value, err := api.ParseHeader(string(text))
	if err != nil {
		return invalid(err.Error())
	}
	h.Name, h.Value = name, Hidden(value)
	return nil
}

// Size is a number of bytes.
type Size int64

// UnmarshalText reads bytes, or a number with a unit: KB, MB, GB count by 1000, KiB, MiB, GiB by 1024.
func (s *Size) UnmarshalText(text []byte) error {
	const why = invalid("must be a size like 64MiB, 10MB or a number of bytes")
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

// Networks are address ranges. api.SocketPeers among them stands for the peers of a Unix socket.
type Networks []netip.Prefix

const socketPeers = "unix"

// String returns the ranges in the syntax of the setting.
func (n Networks) String() string {
	var list []string
	for _, p := range n {
		if p == api.SocketPeers {
			list = append(list, socketPeers)
		} else {
			list = append(list, p.String())
		}
	}
	return strings.Join(list, ",")
}

// UnmarshalText reads addresses and networks, separated by commas.
func (n *Networks) UnmarshalText(text []byte) error {
	*n = nil
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if strings.EqualFold(part, socketPeers) {
			*n = append(*n, api.SocketPeers)
			continue
		}
		var one api.Network
		if err := one.UnmarshalText([]byte(part)); err != nil {
			return invalid("must be addresses or networks like 10.0.0.7,172.16.0.0/12, or unix for the peers of a Unix socket")
		}
		p := one.Prefix
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		// 10.0.0.0/8 and fc00::/7 are the widest private networks.
		if a := p.Addr(); a.Is4() && p.Bits() < 8 || a.Is6() && p.Bits() < 7 {
			return invalid("must not trust (almost) all addresses: any client could then claim any address; name the networks of your proxies")
		}
		*n = append(*n, p)
	}
	return nil
}

// Aliases are alternative names for models.
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
			return invalid("must be names and models like claude-*=qwen3-coder,gpt-4o=llama3.2")
		}
		*a = append(*a, one)
	}
	return nil
}

// Policies are the operator's rules for what requests may set.
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
			return invalid("must be field=action or pattern field=action, like qwen3:* num_ctx=set:16384,raw=refuse; docs/policy.md lists the fields and actions")
		}
		*p = append(*p, one)
	}
	return nil
}

// Hosts are host names with or without a port, in lower case.
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
			return invalid("must be hosts without a scheme or path, like hf.co,registry.example.net:5000")
		}
		*h = append(*h, part)
	}
	return nil
}

// Domains are DNS names in lower case.
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
			return invalid("must be full host names like gateway.example.net, without a scheme, a port or a star, and not an address")
		}
		*d = append(*d, part)
	}
	return nil
}

// Email is an e-mail address.
type Email string

var email = regexp.MustCompile(`^[^@\s,]+@[^@\s,]+$`)

// UnmarshalText reads one address.
func (e *Email) UnmarshalText(text []byte) error {
	if !email.Match(text) {
		return invalid("must be one address like admin@example.net")
	}
	*e = Email(text)
	return nil
}

// Directory is the https address of an ACME directory.
type Directory string

// UnmarshalText reads an address.
func (d *Directory) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return invalid("must be the https address of the CA's directory, like https://ca.example.net/acme/directory")
	}
	*d = Directory(text)
	return nil
}

// Origins are the origins whose pages may call the service from a browser.
type Origins []api.Origin

// UnmarshalText reads origins, separated by commas.
func (o *Origins) UnmarshalText(text []byte) error {
	*o = nil
	for part := range strings.SplitSeq(string(text), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		one, err := api.ParseOrigin(part)
		if err != nil {
			return invalid(err.Error())
		}
		*o = append(*o, one)
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
	return invalid("must be json or text")
}

// AddressDetail is how much of a client's address the log contains.
type AddressDetail api.AddressDetail

// UnmarshalText reads full, prefix or none.
func (d *AddressDetail) UnmarshalText(text []byte) error {
	switch v := api.AddressDetail(strings.ToLower(string(text))); v {
	case api.AddressFull, api.AddressPrefix, api.AddressNone:
		*d = AddressDetail(v)
		return nil
	}
	return invalid("must be full, prefix or none")
}

// BasePath is a path without a slash at its end. "" is the root.
type BasePath string

var baseSegment = regexp.MustCompile(`^[A-Za-z0-9_~-][A-Za-z0-9._~-]*$`)

// ownSegments are the first segments of the service's own paths. A base path that starts with one would be ambiguous.
var ownSegments = map[string]bool{
	"api": true, "v1": true, "k": true, "docs": true, "redoc": true, "openapi.json": true,
	"health": true, "healthz": true, "readyz": true, "metrics": true,
}

// UnmarshalText reads a path like /ollama.
func (p *BasePath) UnmarshalText(text []byte) error {
	path, ok := strings.CutPrefix(strings.TrimRight(string(text), "/"), "/")
	if *p = ""; !ok && len(text) > 0 && strings.Trim(string(text), "/") == "" {
		return nil
	}
	if !ok || len(path) > 200 {
		return invalid("must be a path like /ollama")
	}
	for i, segment := range strings.Split(path, "/") {
		if !baseSegment.MatchString(segment) {
			return invalid("must be a path like /ollama, of letters, digits and .-_~ between single slashes")
		}
		if i == 0 && ownSegments[strings.ToLower(segment)] {
			return invalid("must not begin with a path of the service itself: choose another one, like /ollama")
		}
	}
	*p = BasePath("/" + path)
	return nil
}

// ProxyProtocol is whether connections start with a header of the PROXY protocol.
type ProxyProtocol bool

// String returns the value as it is written in the setting.
func (p ProxyProtocol) String() string {
	if p {
		return "required"
	}
	return "off"
}

// UnmarshalText reads off or required.
func (p *ProxyProtocol) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "off":
		*p = false
	case "required":
		*p = true
	default:
		return invalid("must be off or required: the gateway does not guess whether a connection has the header, because any client could send one")
	}
	return nil
}
