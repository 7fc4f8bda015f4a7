// Package config reads settings from .env and the environment and validates them. No other package knows the names of environment
// variables.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strconv"
	"time"

	"github.com/caarlos0/env/v11"
)

// Config holds every validated setting. Its fields are in the order of .env.example, which is generated from their doc tags. The reload
// tag marks settings that can change while the service runs.
type Config struct {
	SecretKey         Hidden `env:"SECRET_KEY" doc:"Keys are stored as HMAC-SHA256 hashes under this secret: at least 32 random characters, for instance from\n  openssl rand -hex 32\nEmpty: the first start generates one and stores it in DATA_DIR/secret.key. If the secret changes, no stored key works."`
	SecretKeyPrevious Hidden `env:"SECRET_KEY_PREVIOUS" doc:"The previous SECRET_KEY after a change. Keys hashed with it are accepted, and hashed again with SECRET_KEY when they are used."`

	Ollama           Backends   `env:"OLLAMA_BASE_URL" envDefault:"http://127.0.0.1:11434" doc:"The Ollama servers: http or https addresses, separated by commas. Each may end in ?slots=4&total=8&weight=2&name=gpu1. slots (1 to\n10000) is how many requests the server runs at the same time for each model (its OLLAMA_NUM_PARALLEL); without it, the gateway\nfinds the number by observation. total limits all models of the server together. weight (default 1) is the speed of the\nserver relative to the others. name is its name in statistics and logs; the default is its host, or ollama for a single server.\nSee docs/backends.md.\n  OLLAMA_BASE_URL=http://gpu1:11434?slots=4,http://gpu2:11434?slots=8&weight=2"`
	OllamaAuthHeader AuthHeader `env:"OLLAMA_AUTH_HEADER" doc:"A header that is sent with every request to each Ollama server, if a proxy in front of it requires one.\n  OLLAMA_AUTH_HEADER='Authorization: Bearer abc'"`
	OllamaCA         string     `env:"OLLAMA_CA" doc:"The file of the certificates (PEM) that are trusted for HTTPS to Ollama servers, instead of the ones that this machine trusts: the\ncertificate of a private CA, or a self-signed certificate itself. A renewed file is used from the next connection on.\n  OLLAMA_CA=/etc/ssl/ollama-ca.pem"`
	OllamaClientCert string     `env:"OLLAMA_CLIENT_CERT" doc:"The file of a client certificate with its chain (PEM), for Ollama servers that request one; it needs OLLAMA_CLIENT_KEY too.\nRenewed files are used from the next connection on.\n  OLLAMA_CLIENT_CERT=/etc/ssl/gateway-client.pem"`
	OllamaClientKey  string     `env:"OLLAMA_CLIENT_KEY" doc:"The file of the client certificate's private key (PEM, without a passphrase).\n  OLLAMA_CLIENT_KEY=/etc/ssl/gateway-client.key"`

	Host     string   `env:"HOST" envDefault:"127.0.0.1" doc:"The address to listen on. 0.0.0.0 means all networks of this machine: first set TLS_CERT or ACME_DOMAIN, or put a TLS proxy in\nfront. A path like /run/ollama-api-service/http.sock is a Unix socket with mode 0660, for a proxy on this machine. Requests over\nit have an unknown client address, unless TRUSTED_PROXIES contains unix.\n  HOST=/run/ollama-api-service/http.sock"`
	Port     uint16   `env:"PORT" envDefault:"8000" doc:"The port to listen on; 0 picks a free one."`
	BasePath BasePath `env:"BASE_PATH" doc:"The path below which a proxy publishes the service, for a host name that several services share. Every route then also exists\nbelow this path, and the documentation pages and descriptions contain it. The proxy may keep or strip the path.\n  BASE_PATH=/ollama"`

	TLSCert string `env:"TLS_CERT" reload:"true" doc:"The file of a certificate with its chain (PEM), for HTTPS and HTTP/2 without a proxy; it needs TLS_KEY too. When the files change,\nnew connections get the new certificate within seconds.\n  TLS_CERT=/etc/ssl/gateway/fullchain.pem"`
	TLSKey  string `env:"TLS_KEY" reload:"true" doc:"The file of the certificate's private key (PEM, without a passphrase).\n  TLS_KEY=/etc/ssl/gateway/privkey.pem"`

	ACMEDomain Domains   `env:"ACME_DOMAIN" doc:"Host names, separated by commas, for which to get and renew certificates by ACME, instead of TLS_CERT. Port 443 of each name must\nlead to PORT here. Certificates are stored in DATA_DIR/acme. By setting this you agree to the terms of the CA, which is Let's\nEncrypt unless ACME_CA names another.\n  ACME_DOMAIN=gateway.example.net"`
	ACMEEmail  Email     `env:"ACME_EMAIL" doc:"The address that the CA writes to if there is a problem with a certificate."`
	ACMECA     Directory `env:"ACME_CA" doc:"The address of the ACME directory of another CA, such as one in your own network.\n  ACME_CA=https://ca.example.net/acme/directory"`
	ACMECARoot string    `env:"ACME_CA_ROOT" doc:"The file of the certificate (PEM) that is trusted for HTTPS to ACME_CA. Empty: the certificates that this machine trusts.\n  ACME_CA_ROOT=/etc/ssl/ca-root.pem"`

	HSTS time.Duration `env:"HSTS" envDefault:"0s" doc:"How long browsers that have used the service over its own HTTPS refuse plain HTTP for its name (Strict-Transport-Security), up to\n17520h; 0s sends no such header. It applies to every port of the name and cannot be undone: set it only if you will keep HTTPS.\n  HSTS=8760h"`

	DataDir string `env:"DATA_DIR" envDefault:"./data" doc:"The directory of the database, the journal and the generated secret. Back it up."`

	RetentionRows    int64 `env:"RETENTION_ROWS" envDefault:"30" doc:"How many days each request is stored on its own, in whole UTC days; 0 stores them forever. Older requests are only in the sums of\nRETENTION_ROLLUPS, and in the totals of each key, which are stored forever."`
	RetentionRollups int64 `env:"RETENTION_ROLLUPS" envDefault:"730" doc:"How many days usage by hour and by day is stored; 0 stores it forever. At least RETENTION_ROWS."`

	MigrationCopy bool          `env:"MIGRATION_COPY" envDefault:"true" doc:"true copies the database before a new version changes its schema, so that you can go back to the previous version (see\ndocs/deployment.md). The last two copies are kept next to the database. Without enough space for a copy the service does not\nstart."`
	BackupEvery   time.Duration `env:"BACKUP_EVERY" envDefault:"0s" doc:"How often the running service writes a backup, from 1h to 168h, like 24h; 0s means never. The files have the format of the backup\ncommand, and restore reads them."`
	BackupKeep    int           `env:"BACKUP_KEEP" envDefault:"7" doc:"How many of these backups are kept. When a new one is complete, the oldest is removed."`
	BackupDir     string        `env:"BACKUP_DIR" doc:"The directory for these backups, preferably on another disk. Empty: DATA_DIR/backups. The backups contain the secret if the\nservice generated it."`

	AdminAPIKey Hidden `env:"ADMIN_API_KEY" reload:"true" doc:"An admin key that exists only in this setting and is never stored: at least 24 characters, letters, digits and signs without\nspaces or commas. It works as long as it is set."`
	DemoKeys    bool   `env:"DEMO_KEYS" reload:"true" envDefault:"false" doc:"true adds the keys demo-admin-key-12345 and demo-user-key-67890, which are public. Only with a loopback HOST."`

	ModelAliases Aliases `env:"MODEL_ALIASES" reload:"true" doc:"Other names for models, separated by commas, each name=model; a * in the name matches any characters. A request for the name runs,\ncounts and is authorized as the model; its answer contains the name. The first match wins.\n  MODEL_ALIASES=claude-*=qwen3-coder,gpt-4o=llama3.2"`

	DefaultUserRateLimit  int64 `env:"DEFAULT_USER_RATE_LIMIT" reload:"true" envDefault:"100" doc:"Requests in any 60 minutes for a user key that is created without its own limit."`
	DefaultAdminRateLimit int64 `env:"DEFAULT_ADMIN_RATE_LIMIT" reload:"true" envDefault:"1000" doc:"The same for an admin key."`

	MaxBodyBytes             Size          `env:"MAX_BODY_BYTES" envDefault:"128MiB" doc:"The largest request body, in bytes or with a unit: 64MiB, 10MB. An image of 50 MB is 67 MB in a body. Uploads of model files have\nno such limit."`
	MaxBodyMemory            Size          `env:"MAX_BODY_MEMORY" envDefault:"1GiB" doc:"The memory for the bodies of all concurrent requests; bodies below 16 KiB do not count, and the names of fields count while they are\nread. One key can use at most as much as is free, so that other keys find space; a request that does not fit gets 503. At most 2,048\nbodies are received at the same time, half of them from one key. At least twice MAX_BODY_BYTES, so that one body of the largest size\nalways fits. The program uses up to 150 MB more, so the memory limit of a container must be larger than both\ntogether."`
	MaxRequestTime           time.Duration `env:"MAX_REQUEST_TIME" envDefault:"30m" doc:"The longest time that one request may take, including the wait for a slot. Durations need a unit: 30s, 15m, 2h."`
	UpstreamFirstByteTimeout time.Duration `env:"UPSTREAM_FIRST_BYTE_TIMEOUT" envDefault:"15m" doc:"The longest wait for the first byte of Ollama's answer. Loading a large model takes minutes."`
	SSEHeartbeat             time.Duration `env:"SSE_HEARTBEAT" envDefault:"15s" doc:"How long a stream of events (/v1) may be silent before the gateway sends a comment, so that clients do not close the connection;\n0s sends none."`
	UpstreamIdleTimeout      time.Duration `env:"UPSTREAM_IDLE_TIMEOUT" envDefault:"5m" doc:"The longest pause within Ollama's answer. It does not apply to pull, push, create and blobs."`

	MaxQueue       int           `env:"MAX_QUEUE" envDefault:"1024" doc:"How many requests may wait for a slot. When the queue is full, further requests get 503."`
	MaxQueuePerKey int           `env:"MAX_QUEUE_PER_KEY" envDefault:"128" doc:"How many requests of one key may wait for a slot; further ones get 503. A key also cannot have more waiting requests than there\nare free places in the queue, so that other keys find space. 0 leaves only that second limit."`
	MaxQueueWait   time.Duration `env:"MAX_QUEUE_WAIT" envDefault:"10m" doc:"The longest wait for a slot."`
	PrefixAffinity bool          `env:"PREFIX_AFFINITY" envDefault:"true" doc:"true sends later turns of a conversation to the Ollama server that ran the earlier ones, if it has a free slot: it probably still\nhas their prompt in its cache."`

	DefaultMaxTokens int64         `env:"DEFAULT_MAX_TOKENS" reload:"true" envDefault:"8192" doc:"The longest answer, in tokens, for a user's request that sets no limit: Ollama itself would generate up to ten times the context.\n0 sets no limit. A smaller num_predict in the model's Modelfile is kept."`
	MaxNumCtx        int64         `env:"MAX_NUM_CTX" reload:"true" envDefault:"32768" doc:"The largest context (num_ctx) that a user's request may load a model with; 0 means no limit."`
	MaxKeepAlive     time.Duration `env:"MAX_KEEP_ALIVE" reload:"true" envDefault:"1h" doc:"The longest time (keep_alive) that a user's request may keep a model loaded; 0s means no limit."`
	Policy           Policies      `env:"POLICY" reload:"true" doc:"Rules for what users' requests may set, separated by commas: field=action, or for some models pattern field=action. The actions\nare pass, drop, refuse, default:N, max:N and set:N; docs/policy.md lists the fields. The first match wins.\n  POLICY='qwen3:* num_ctx=set:16384,raw=refuse'"`
	RegistryHosts    Hosts         `env:"REGISTRY_HOSTS" reload:"true" doc:"Hosts, separated by commas, from and to which models may be pulled, pushed and created, in addition to Ollama's own registry. The\nOllama server connects to them, with plain HTTP if a pull asks for it.\n  REGISTRY_HOSTS=hf.co,registry.example.net:5000"`

	JournalMaxBytes Size          `env:"JOURNAL_MAX_BYTES" envDefault:"1GiB" doc:"How large the journal may grow while requests arrive faster than the database takes their rows, or the database\naccepts none; at least 16MiB. A request takes about 300 bytes. When the journal is full, requests get 503 with\nRetry-After until the database has taken rows: none is served without being recorded."`
	CountGrace      time.Duration `env:"COUNT_GRACE" envDefault:"0s" doc:"How long the gateway keeps reading an answer whose client left in the middle of a stream, so that its tokens are counted and not\nestimated. Meanwhile its slot stays in use. 0s stops Ollama within a second."`

	AuthFailuresPerMinute    int     `env:"AUTH_FAILURES_PER_MINUTE" envDefault:"30" doc:"How many different invalid keys one address may send in a minute before it must wait. A request that contains only a valid key is\nstill served. Further keys, and repeated ones, are only compared with the keys in memory. 0 means no limit, and the database is read\nfor each."`
	MaxConnectionsPerAddress int     `env:"MAX_CONNECTIONS_PER_ADDRESS" envDefault:"512" doc:"How many open connections one address may have, with or without a key. This machine and TRUSTED_PROXIES are exempt; 0 means no\nlimit."`
	CORSOrigins              Origins `env:"CORS_ORIGINS" reload:"true" doc:"Origins, separated by commas, whose pages may call the service from a browser. A star stands for the first label of a host, the\nwhole host, or the port; * is every origin except null. Other people can read a key in a web page.\n  CORS_ORIGINS=https://chat.example.net,http://localhost:*,https://*.example.com,chrome-extension://*"`

	TrustedProxies Networks `env:"TRUSTED_PROXIES" reload:"true" doc:"Addresses or networks, separated by commas, of the proxies whose X-Forwarded-For is trusted; unix means the clients of a HOST that\nis a Unix socket.\n  TRUSTED_PROXIES=10.0.0.7,172.16.0.0/12"`

	ProxyProtocol ProxyProtocol `env:"PROXY_PROTOCOL" envDefault:"off" doc:"off, or required if a TCP load balancer in front sends the client address with the PROXY protocol (version 1 or 2). The gateway\nnever guesses: with required, every connection must start with the header and come from TRUSTED_PROXIES."`

	MetricsOpen bool `env:"METRICS_OPEN" envDefault:"false" doc:"true lets programs on this machine read /metrics without a key. Do not set it if a proxy on this machine forwards requests without\nX-Forwarded-For, unless TRUSTED_PROXIES contains the proxy's address: otherwise everyone could read the metrics."`

	OTLPEndpoint       Collector   `env:"OTEL_EXPORTER_OTLP_ENDPOINT" doc:"The address of an OpenTelemetry collector (OTLP over HTTP, usually port 4318) that receives traces of requests, at /v1/traces\nbelow the address. Empty: no traces. See docs/tracing.md for their content.\n  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"`
	OTLPHeaders        HiddenPairs `env:"OTEL_EXPORTER_OTLP_HEADERS" doc:"Headers that the collector requires, name=value, separated by commas, with %20 for a space in a value.\n  OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20abc'"`
	ServiceName        string      `env:"OTEL_SERVICE_NAME" envDefault:"ollama-api-service" doc:"The name of the service in traces."`
	ResourceAttributes Pairs       `env:"OTEL_RESOURCE_ATTRIBUTES" doc:"Further attributes of the service in traces, name=value, separated by commas.\n  OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=production"`
	TraceRatio         Part        `env:"OTEL_TRACES_SAMPLER_ARG" envDefault:"1" doc:"The fraction of requests that is traced: 0.1 is a tenth. It also applies to requests with a traceparent. A request whose\ntraceparent says that its trace is not recorded is never traced."`
	TraceUpstream      bool        `env:"TRACE_UPSTREAM" envDefault:"false" doc:"true sends a traceparent to the Ollama server, if a proxy in front of it can use it. Ollama itself ignores it."`

	LogLevel         slog.Level    `env:"LOG_LEVEL" reload:"true" envDefault:"info" doc:"debug, info, warn or error. Successful probes and scrapes (/health, /healthz, /readyz, /metrics) are logged at debug."`
	LogFormat        LogFormat     `env:"LOG_FORMAT" envDefault:"json" doc:"json or text, one line for each event, on standard output."`
	LogClientAddress AddressDetail `env:"LOG_CLIENT_ADDRESS" envDefault:"full" doc:"How much of a client's address the log contains: full, prefix (the first 24 bits of IPv4, 48 of IPv6) or none. The usage records\nand the audit table, which only admins can read, always contain the full address: limits by address and investigations need it."`

	StartWait     time.Duration `env:"START_WAIT" envDefault:"1m" doc:"How long the start waits for conditions that may resolve on their own: an address or a name that does not exist yet, a port or a\nDATA_DIR that the previous process still uses, space on a full disk, a disk that is mounted later, the files of a certificate.\nThen the service exits with 1, and the supervisor restarts it. 0s does not wait."`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" envDefault:"30s" doc:"How long running requests may continue after the service is told to stop."`

	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" doc:"How long the service keeps accepting connections after it is told to stop, while /readyz already answers 503: as long as a load\nbalancer needs to notice. Then SHUTDOWN_GRACE begins. With systemd's socket unit no connection is refused in any case."`

	// Warnings are sentences for the log at start about settings that work but may be a mistake.
	Warnings []string

	origin *origin // a pointer, so that printing the settings does not print it
}

// origin records where the values come from and their original text, including secrets.
type origin struct {
	file        string
	text        []byte // of the file; nil without a file
	values      map[string]string
	environ     []string
	environment map[string]string // the settings in environ
	files       map[string]string // for secrets in files, how the file is named: SECRET_KEY_FILE, or a credential
	demo        bool              // --demo was given
	socket      bool              // HOST and PORT are those of a socket from systemd
	open        bool              // a socket from systemd is reachable from other machines
}

// Error is an invalid setting. Its text is one line that names the setting and how to fix it, and never contains the value. The program
// exits with 2.
type Error struct {
	text  string
	cause error // an error of the system, if any
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the cause. Its text may contain a value, so use it only to classify the error.
func (e *Error) Unwrap() error { return e.cause }

func errorf(format string, args ...any) *Error { return &Error{text: fmt.Sprintf(format, args...)} }

// causedBy returns an Error with a cause.
func causedBy(err error, format string, args ...any) *Error {
	return &Error{fmt.Sprintf(format, args...), err}
}

// Load reads the settings. environ ("NAME=value") overrides the file dotenvPath, which need not exist, and the file overrides the
// defaults. An empty value counts as unset. Errors are of type *Error.
func Load(dotenvPath string, environ []string) (*Config, error) {
	var c Config
	text, err := readDotenv(dotenvPath, &c.Warnings)
	if err != nil {
		return nil, err
	}
	values, err := parseDotenv(dotenvPath, text)
	if err != nil {
		return nil, err
	}
	c.origin = &origin{
		file: dotenvPath, text: text, values: maps.Clone(values),
		environ: environ, environment: map[string]string{}, files: map[string]string{},
	}
	known, environment, raw := knownNames(), env.ToMap(environ), map[string]bool{}
	for name, value := range environment {
		// Read only our own names: the environment contains many others, which must have no effect.
		if _, ours := known[name]; ours && value != "" {
			values[name], c.origin.environment[name], raw[name] = value, value, true
		}
	}
	c.warnNearNames(environment)
	if err := c.readSecrets(values, raw, environment[credentialsDir]); err != nil {
		return nil, err
	}
	if err := checkValues(values, raw); err != nil {
		return nil, err
	}
	if err := env.ParseWithOptions(&c, env.Options{Environment: values}); err != nil {
		return nil, readable(err)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &c, nil
}

// setting is a field of Config with a name in the environment.
type setting struct {
	field, name, standard, doc string
	reload                     bool // it can change while the service runs
}

// settings returns the settings by name.
func settings() map[string]setting {
	byName := map[string]setting{}
	for _, s := range settingList() {
		byName[s.name] = s
	}
	return byName
}

// settingList returns the settings in the order of Config.
func settingList() []setting {
	var list []setting
	for f := range reflect.TypeFor[Config]().Fields() {
		if name, ok := f.Tag.Lookup("env"); ok {
			list = append(list, setting{f.Name, name, f.Tag.Get("envDefault"), f.Tag.Get("doc"), f.Tag.Get("reload") != ""})
		}
	}
	return list
}

// readable translates the first error of the parser. Its own text contains values.
func readable(err error) error {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return errorf("the settings cannot be read")
	}
	name := parse.Name
	for _, s := range settingList() {
		if s.field == parse.Name {
			name = s.name
		}
	}
	var why invalid
	if errors.As(parse.Err, &why) {
		return errorf("%s %s", name, string(why))
	}
	switch {
	case parse.Type == reflect.TypeFor[time.Duration]():
		why = "must be a duration with a unit, like 30s, 15m or 2h"
	case parse.Type == reflect.TypeFor[slog.Level]():
		why = "must be debug, info, warn or error"
	case parse.Type.Kind() == reflect.Bool:
		why = "must be true or false"
	case parse.Type.Kind() == reflect.Uint16:
		why = "must be a port from 0 to 65535"
	default:
		why = "must be a whole number"
	}
	return errorf("%s %s", name, string(why))
}

// invalid explains why a value is refused and what is allowed. The name of the setting goes in front of it.
type invalid string

func (i invalid) Error() string { return string(i) }

// Socket returns the path of the Unix socket to listen on, or "" if HOST is an address.
func (c *Config) Socket() string {
	if filepath.IsAbs(c.Host) {
		return c.Host
	}
	return ""
}

// Address returns the host and port to listen on.
func (c *Config) Address() string {
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// Scheme returns the URL scheme for clients: http or https.
func (c *Config) Scheme() string {
	if c.TLSCert != "" || len(c.ACMEDomain) > 0 {
		return "https"
	}
	return "http"
}

// EnableDemo adds the demo keys, as DEMO_KEYS=true does. It returns an *Error if other machines could use them.
func (c *Config) EnableDemo() error {
	c.DemoKeys, c.origin.demo = true, true
	return c.checkDemo()
}

func (c *Config) checkDemo() error {
	if c.DemoKeys && (!c.loopback() || c.origin != nil && c.origin.open) {
		return errorf("DEMO_KEYS (or --demo) needs a HOST that only this machine can reach, because these keys are public: set HOST to 127.0.0.1, or create your own keys")
	}
	return nil
}

func (c *Config) loopback() bool {
	if c.Host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(c.Host)
	return err == nil && a.Unmap().IsLoopback()
}

// LogValue returns the settings for a log line, without the secrets.
func (c *Config) LogValue() slog.Value {
	v := reflect.ValueOf(c).Elem()
	var attrs []slog.Attr
	for _, s := range settingList() {
		attrs = append(attrs, slog.String(s.name, fmt.Sprint(v.FieldByName(s.field).Interface())))
	}
	return slog.GroupValue(attrs...)
}

// String returns the settings on one line, without the secrets.
func (c *Config) String() string { return c.LogValue().String() }
