package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

const (
	maxHSTS     = 17520 * time.Hour // two years
	minSecret   = 32                // characters of SECRET_KEY
	minAdminKey = 24
	maxAdminKey = 256
	maxQueue    = 1_000_000
	maxBody     = 1 << 40
	maxTokens   = 1 << 31
	maxDays     = 36_500
)

// placeholders are words in examples and templates that stand for a secret. They are public.
var placeholders = []string{
	"change-this", "change_this", "changethis", "changeme", "change-me", "change_me", "your-super-secret", "your-secret",
	"your_secret", "your-admin", "secret-key-here", "placeholder", "example",
}

func isPlaceholder(secret Hidden) bool {
	lower := strings.ToLower(string(secret))
	for _, p := range placeholders {
		if strings.Contains(lower, p) {
			return true
		}
	}
	return false
}

// check validates the settings, each on its own and in combination, and collects the warnings.
func (c *Config) check() error {
	for _, check := range []func() error{c.checkSecrets, c.checkNumbers, c.checkTLS, c.checkListen, c.checkOllama, c.checkTraces} {
		if err := check(); err != nil {
			return err
		}
	}
	if c.BackupDir == "" {
		c.BackupDir = filepath.Join(c.DataDir, "backups")
	}
	// Full paths name the same files if the working directory changes later, and make messages clear.
	for name, path := range map[string]*string{
		"DATA_DIR": &c.DataDir, "BACKUP_DIR": &c.BackupDir, "TLS_CERT": &c.TLSCert, "TLS_KEY": &c.TLSKey, "ACME_CA_ROOT": &c.ACMECARoot,
		"OLLAMA_CA": &c.OllamaCA, "OLLAMA_CLIENT_CERT": &c.OllamaClientCert, "OLLAMA_CLIENT_KEY": &c.OllamaClientKey,
	} {
		if *path == "" {
			continue
		}
		full, err := filepath.Abs(*path)
		if err != nil {
			return errorf("%s cannot be resolved, because the working directory no longer exists: set a full path, like /var/lib/ollama-api-service", name)
		}
		*path = full
	}
	return nil
}

func (c *Config) checkSecrets() error {
	for name, secret := range map[string]Hidden{"SECRET_KEY": c.SecretKey, "SECRET_KEY_PREVIOUS": c.SecretKeyPrevious} {
		if secret != "" && (len(secret) < minSecret || isPlaceholder(secret)) {
			return errorf("%s is a placeholder or shorter than %d characters: set it to the output of `openssl rand -hex 32`, or leave it out to have one generated", name, minSecret)
		}
	}
	if c.SecretKeyPrevious != "" && c.SecretKeyPrevious == c.SecretKey {
		return errorf("SECRET_KEY_PREVIOUS is the same as SECRET_KEY: leave it out, or set it to the secret before the change")
	}
	if c.AdminAPIKey == "" {
		return nil
	}
	if n := len(c.AdminAPIKey); n < minAdminKey || n > maxAdminKey || isPlaceholder(c.AdminAPIKey) {
		return errorf("ADMIN_API_KEY is a placeholder or does not have %d to %d characters: set it to the output of `openssl rand -hex 24`, or leave it out", minAdminKey, maxAdminKey)
	}
	if !visible(string(c.AdminAPIKey), "") || strings.Contains(string(c.AdminAPIKey), ",") {
		return errorf("ADMIN_API_KEY must be letters, digits and signs without spaces or commas, because clients cannot send others: set it to the output of `openssl rand -hex 24`")
	}
	return nil
}

func (c *Config) checkNumbers() error {
	for _, n := range []struct {
		name               string
		value, least, most int64
	}{
		{"DEFAULT_USER_RATE_LIMIT", c.DefaultUserRateLimit, 0, api.MaxRateLimit},
		{"DEFAULT_ADMIN_RATE_LIMIT", c.DefaultAdminRateLimit, 0, api.MaxRateLimit},
		{"MAX_QUEUE", int64(c.MaxQueue), 0, maxQueue},
		{"MAX_QUEUE_PER_KEY", int64(c.MaxQueuePerKey), 0, maxQueue},
		{"AUTH_FAILURES_PER_MINUTE", int64(c.AuthFailuresPerMinute), 0, maxQueue},
		{"MAX_CONNECTIONS_PER_ADDRESS", int64(c.MaxConnectionsPerAddress), 0, maxQueue},
		{"DEFAULT_MAX_TOKENS", c.DefaultMaxTokens, 0, maxTokens},
		{"MAX_NUM_CTX", c.MaxNumCtx, 0, maxTokens},
		{"BACKUP_KEEP", int64(c.BackupKeep), 1, 10_000},
		{"RETENTION_ROWS", c.RetentionRows, 0, maxDays},
		{"RETENTION_ROLLUPS", c.RetentionRollups, 0, maxDays},
		{"MAX_BODY_BYTES", int64(c.MaxBodyBytes), 1024, maxBody},
		{"MAX_BODY_MEMORY", int64(c.MaxBodyMemory), 2 * int64(c.MaxBodyBytes), 1 << 50}, // a body and its decoded form
		{"JOURNAL_MAX_BYTES", int64(c.JournalMaxBytes), 16 << 20, 1 << 40},
	} {
		if n.value < n.least || n.value > n.most {
			return errorf("%s must be from %d to %d", n.name, n.least, n.most)
		}
	}
	if c.RetentionRows == 1 {
		return errorf("RETENTION_ROWS must be 0 (forever) or at least 2: at start, daily limits are counted from the rows")
	}
	if c.RetentionRollups != 0 && (c.RetentionRows == 0 || c.RetentionRollups < c.RetentionRows) {
		return errorf("RETENTION_ROLLUPS must be 0 (forever) or at least RETENTION_ROWS: the sums must not be deleted before the rows")
	}
	if c.BackupEvery != 0 && (c.BackupEvery < time.Hour || c.BackupEvery > 7*24*time.Hour) {
		return errorf("BACKUP_EVERY must be 0s (never) or a duration from 1h to 168h")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"MAX_REQUEST_TIME", c.MaxRequestTime, time.Second},
		{"UPSTREAM_FIRST_BYTE_TIMEOUT", c.UpstreamFirstByteTimeout, time.Second},
		{"UPSTREAM_IDLE_TIMEOUT", c.UpstreamIdleTimeout, time.Second},
		{"MAX_QUEUE_WAIT", c.MaxQueueWait, 0},
		{"MAX_KEEP_ALIVE", c.MaxKeepAlive, 0},
		{"SSE_HEARTBEAT", c.SSEHeartbeat, 0},
		{"COUNT_GRACE", c.CountGrace, 0},
		{"START_WAIT", c.StartWait, 0},
		{"SHUTDOWN_GRACE", c.ShutdownGrace, 0},
		{"SHUTDOWN_DELAY", c.ShutdownDelay, 0},
	} {
		if d.value < d.least || d.value > 7*24*time.Hour {
			return errorf("%s must be a duration from %s to 168h", d.name, d.least)
		}
	}
	return nil
}

func (c *Config) checkTLS() error {
	switch {
	case c.HSTS < 0 || c.HSTS > maxHSTS:
		return errorf("HSTS must be a duration from 0s to 17520h")
	case c.TLSCert != "" && c.TLSKey == "":
		return errorf("TLS_KEY is missing, because TLS_CERT is set: set it to the file of the certificate's private key, or leave both out")
	case c.TLSKey != "" && c.TLSCert == "":
		return errorf("TLS_CERT is missing, because TLS_KEY is set: set it to the file of the certificate, or leave both out")
	case len(c.ACMEDomain) > 0 && c.TLSCert != "":
		return errorf("ACME_DOMAIN and TLS_CERT are both set: leave out ACME_DOMAIN to use your own certificate, or TLS_CERT and TLS_KEY to get one by ACME")
	case len(c.ACMEDomain) > 0:
		return nil
	case c.TLSKey != "":
		c.warnReadable("TLS_KEY", c.TLSKey)
	}
	for name, value := range map[string]string{"ACME_EMAIL": string(c.ACMEEmail), "ACME_CA": string(c.ACMECA), "ACME_CA_ROOT": c.ACMECARoot} {
		if value != "" {
			return errorf("%s is set but ACME_DOMAIN is not: set it to the host names for the certificates, or leave out %s", name, name)
		}
	}
	return nil
}

func (c *Config) checkListen() error {
	if c.ProxyProtocol && len(c.TrustedProxies) == 0 {
		return errorf("PROXY_PROTOCOL is required but TRUSTED_PROXIES is empty: name the proxies whose headers are trusted, or set PROXY_PROTOCOL to off")
	}
	if path, ok := strings.CutPrefix(c.Host, "unix:"); ok || filepath.IsAbs(c.Host) {
		return c.checkSocket(path)
	}
	if slices.Contains(c.TrustedProxies, api.SocketPeers) {
		return errorf("TRUSTED_PROXIES contains unix, but HOST is not a Unix socket: leave unix out, or set HOST to a path like /run/ollama-api-service/http.sock")
	}
	c.Host = strings.ToLower(strings.Trim(c.Host, "[]"))
	if a, err := netip.ParseAddr(c.Host); err != nil && !hostName.MatchString(c.Host) || a.Is4In6() {
		return errorf("HOST must be an address or a name of this machine without a port, like 127.0.0.1; set the port with PORT")
	}
	if a, err := netip.ParseAddr(c.Host); err == nil && a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "" {
		return errorf("HOST is a link-local address, which needs the name of its network interface, like fe80::1%%eth0")
	}
	if err := c.checkDemo(); err != nil {
		return err
	}
	if !c.loopback() && c.Scheme() == "http" && len(c.TrustedProxies) == 0 {
		c.Warnings = append(c.Warnings, "HOST is reachable from other machines and this service uses plain HTTP, so others can read keys and prompts in transit: set TLS_CERT and TLS_KEY, or ACME_DOMAIN, or put a TLS proxy in front and name it in TRUSTED_PROXIES, or set HOST to 127.0.0.1")
	}
	return nil
}

var errOwn = errorf("OLLAMA_BASE_URL is this service's own address: set it to that of the Ollama server, usually http://127.0.0.1:11434, or change PORT")

// ListenAt records that the service listens on a socket that it was given, instead of HOST and PORT. It returns an *Error if other
// settings conflict with that.
func (c *Config) ListenAt(addr net.Addr) error {
	at, ok := addr.(*net.TCPAddr)
	if !ok {
		c.origin.open = true // the clients of a Unix socket may be anywhere
		return c.checkDemo()
	}
	host := at.AddrPort().Addr().Unmap()
	c.origin.socket, c.Host, c.Port = true, host.String(), uint16(at.Port)
	c.origin.open = c.origin.open || !host.IsLoopback()
	known := c.Warnings
	if err := c.checkListen(); err != nil {
		return err
	}
	if n := len(known); len(c.Warnings) > n && slices.Contains(known, c.Warnings[n]) {
		c.Warnings = known
	}
	for _, b := range c.Ollama {
		if c.Own(b.URL) {
			return errOwn
		}
	}
	return nil
}

// maxSocketPath leaves room in the 108 bytes that systems allow for the path of a socket.
const maxSocketPath = 85

func (c *Config) checkSocket(path string) error {
	path = filepath.Clean(path)
	switch {
	case !filepath.IsAbs(path) || len(path) > maxSocketPath:
		return errorf("HOST must be a full path of at most %d bytes for a Unix socket, like /run/ollama-api-service/http.sock", maxSocketPath)
	case len(c.ACMEDomain) > 0:
		return errorf("ACME_DOMAIN needs a HOST that the CA can connect to: with a Unix socket, leave it out and give the certificate to the proxy")
	}
	c.Host = path
	if err := c.checkDemo(); err != nil {
		return err
	}
	return nil
}

func (c *Config) checkOllama() error {
	switch {
	case c.OllamaClientCert != "" && c.OllamaClientKey == "":
		return errorf("OLLAMA_CLIENT_KEY is missing, because OLLAMA_CLIENT_CERT is set: set it to the file of the certificate's private key, or leave both out")
	case c.OllamaClientKey != "" && c.OllamaClientCert == "":
		return errorf("OLLAMA_CLIENT_CERT is missing, because OLLAMA_CLIENT_KEY is set: set it to the file of the certificate, or leave both out")
	}
	for _, b := range c.Ollama {
		if c.Own(b.URL) {
			return errOwn
		}
		if a, err := netip.ParseAddr(b.URL.Hostname()); err == nil && public(a.Unmap()) {
			c.Warnings = append(c.Warnings, "OLLAMA_BASE_URL has a public address, that of "+b.Name+": everyone who can reach it can use Ollama without a key; let its firewall accept only this machine")
		}
	}
	return nil
}

// Own reports whether an address leads back to this service.
func (c *Config) Own(base *url.URL) bool {
	return portOf(base) == int(c.Port) && c.ownHost(base.Hostname())
}

// RefuseBackend returns why an address cannot be a server that an admin adds, or nil. The text of the error continues a sentence that
// starts with the address.
func (c *Config) RefuseBackend(base *url.URL) error {
	if c.Own(base) {
		return invalid("is this service's own address: name that of the Ollama server")
	}
	return nil
}

// ownHost reports whether host, with our port, is this service.
func (c *Config) ownHost(host string) bool {
	host = strings.ToLower(host)
	if host == c.Host {
		return true
	}
	theirs, named := netip.ParseAddr(host)
	ours, _ := netip.ParseAddr(c.Host)
	theirs = theirs.Unmap().WithZone("")
	local := host == "localhost" || named == nil && (theirs.IsLoopback() || theirs.IsUnspecified())
	if c.Host == "localhost" || ours.IsLoopback() {
		return host == "localhost" || theirs == ours || theirs.IsUnspecified() || local && c.Host == "localhost"
	}
	if !ours.IsUnspecified() {
		return theirs.IsValid() && theirs == ours
	}
	return local || ownInterface(theirs)
}

func ownInterface(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, one := range addrs {
		if n, ok := one.(*net.IPNet); ok {
			if own, ok := netip.AddrFromSlice(n.IP); ok && own.Unmap() == a {
				return true
			}
		}
	}
	return false
}

// portOf returns the port in an address, or the default of its scheme.
func portOf(base *url.URL) int {
	if p, err := strconv.Atoi(base.Port()); err == nil {
		return p
	}
	if base.Scheme == "https" {
		return 443
	}
	return 80
}

// sharedSpace is the range of carriers and of overlay networks such as Tailscale (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
}
