// Package config turns .env and the environment into checked settings. It alone knows the names of environment variables.
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

// Config is every setting, checked. Its fields are in the order of .env.example, and their doc tags are its text. A reload tag marks
// those that can change while the service runs.
type Config struct {
	SecretKey         Hidden `env:"SECRET_KEY" doc:"Key texts are stored as HMAC-SHA256 under this secret: at least 32 random characters, for instance from\n  openssl rand -hex 32\nEmpty: made once and kept in DATA_DIR/secret.key. With another secret than before, no stored key works."`
	SecretKeyPrevious Hidden `env:"SECRET_KEY_PREVIOUS" doc:"The SECRET_KEY before a change of it. Keys still stored under it are accepted, and stored anew when they are used."`

	Ollama           Backends   `env:"OLLAMA_BASE_URL" envDefault:"http://127.0.0.1:11434" doc:"The Ollama servers: http or https addresses, separated by commas. Each may end in ?slots=4&total=8&weight=2&name=gpu1.\nslots (1 to 10000) is how many requests a server is given at one time for each model - its OLLAMA_NUM_PARALLEL; without it\nthat is found by watching - and total for all its models together. weight (1) is how fast it is beside the others, and name\nwhat it is called in statistics and logs: its host, or ollama where it is the only one. docs/backends.md says more.\n  OLLAMA_BASE_URL=http://gpu1:11434?slots=4,http://gpu2:11434?slots=8&weight=2"`
	OllamaAuthHeader AuthHeader `env:"OLLAMA_AUTH_HEADER" doc:"A header sent to each Ollama server with every request, where something in front of it asks for one.\n  OLLAMA_AUTH_HEADER='Authorization: Bearer abc'"`
	OllamaCA         string     `env:"OLLAMA_CA" doc:"The file of the certificates (PEM) by which the HTTPS of Ollama servers is trusted, in place of those that this machine trusts:\nthat of a private CA, or a self-signed certificate itself. A renewed file is taken up with the next connection.\n  OLLAMA_CA=/etc/ssl/ollama-ca.pem"`
	OllamaClientCert string     `env:"OLLAMA_CLIENT_CERT" doc:"The file of a client certificate with its chain (PEM) that is shown to Ollama servers that ask for one; OLLAMA_CLIENT_KEY is then\nneeded too. Renewed files are taken up with the next connection.\n  OLLAMA_CLIENT_CERT=/etc/ssl/gateway-client.pem"`
	OllamaClientKey  string     `env:"OLLAMA_CLIENT_KEY" doc:"The file of its private key (PEM, without a passphrase).\n  OLLAMA_CLIENT_KEY=/etc/ssl/gateway-client.key"`

	Host     string   `env:"HOST" envDefault:"127.0.0.1" doc:"The address to listen on. 0.0.0.0 is every network of this machine: set TLS_CERT or ACME_DOMAIN, or put TLS in front, first.\nA path like /run/ollama-api-service/http.sock is a Unix socket with mode 0660, for a proxy on this machine. What comes over it\ncounts as of an unknown address, unless TRUSTED_PROXIES names unix.\n  HOST=/run/ollama-api-service/http.sock"`
	Port     uint16   `env:"PORT" envDefault:"8000" doc:"The port to listen on; 0 is any free one."`
	BasePath BasePath `env:"BASE_PATH" doc:"The path below which a proxy publishes the service, for a name that other services share. Every route is then there too, and the\npages and descriptions name it; a proxy may pass the path on or take it off.\n  BASE_PATH=/ollama"`

	TLSCert string `env:"TLS_CERT" reload:"true" doc:"The file of a certificate with its chain (PEM), for HTTPS and HTTP/2 without a proxy; TLS_KEY is then needed too. When the\nfiles change, new connections get the new certificate within seconds.\n  TLS_CERT=/etc/ssl/gateway/fullchain.pem"`
	TLSKey  string `env:"TLS_KEY" reload:"true" doc:"The file of the certificate's private key (PEM, without a passphrase).\n  TLS_KEY=/etc/ssl/gateway/privkey.pem"`

	ACMEDomain Domains   `env:"ACME_DOMAIN" doc:"Names, separated by commas, to get certificates for by ACME and to renew them, instead of TLS_CERT. Port 443 of each name must\nlead to PORT here. Certificates are kept in DATA_DIR/acme. Setting it agrees to the terms of the CA, which is Let's Encrypt\nunless ACME_CA names another.\n  ACME_DOMAIN=gateway.example.net"`
	ACMEEmail  Email     `env:"ACME_EMAIL" doc:"Where the CA writes to when something is wrong with a certificate."`
	ACMECA     Directory `env:"ACME_CA" doc:"The address of the ACME directory of another CA, such as one of your own network.\n  ACME_CA=https://ca.example.net/acme/directory"`
	ACMECARoot string    `env:"ACME_CA_ROOT" doc:"The file of the certificate (PEM) by which the HTTPS of ACME_CA itself is trusted; none is what this machine trusts.\n  ACME_CA_ROOT=/etc/ssl/ca-root.pem"`

	HSTS time.Duration `env:"HSTS" envDefault:"0s" doc:"For how long browsers that have seen the service over its own HTTPS refuse plain HTTP for its name (Strict-Transport-Security), up to\n17520h; 0s tells them nothing. It holds for every port of the name and cannot be taken back: set it when HTTPS is there to stay.\n  HSTS=8760h"`

	DataDir string `env:"DATA_DIR" envDefault:"./data" doc:"The directory of the database, the journal and the generated secret. Back it up."`

	RetentionRows    int64 `env:"RETENTION_ROWS" envDefault:"30" doc:"For how many days each request is kept by itself; 0 keeps them for ever. Whole days of UTC. What is older is in the sums of\nRETENTION_ROLLUPS alone, and in the totals of each key, which are kept for ever."`
	RetentionRollups int64 `env:"RETENTION_ROLLUPS" envDefault:"730" doc:"For how many days usage by hour and by day is kept; 0 keeps it for ever. At least RETENTION_ROWS."`

	MigrationCopy bool          `env:"MIGRATION_COPY" envDefault:"true" doc:"true keeps a copy of the database next to it before a new version changes its schema, the last two of them: the way back to the\nversion before. Without room for it the service does not start. docs/deployment.md says how to go back."`
	BackupEvery   time.Duration `env:"BACKUP_EVERY" envDefault:"0s" doc:"How often a backup is written while the service runs, from 1h to 168h, like 24h; 0s is never. Each is a file like those of the\nbackup command, and restore reads it."`
	BackupKeep    int           `env:"BACKUP_KEEP" envDefault:"7" doc:"How many of these backups are kept. An older one is removed when a new one is complete."`
	BackupDir     string        `env:"BACKUP_DIR" doc:"The directory for them: best on another disk. Empty: DATA_DIR/backups. They hold the secret that the service made, if it made one."`

	AdminAPIKey Hidden `env:"ADMIN_API_KEY" reload:"true" doc:"An admin key that lives in this setting alone and is never stored: at least 24 characters, letters, digits and signs\nwithout spaces or commas. It works as long as it is set."`
	DemoKeys    bool   `env:"DEMO_KEYS" reload:"true" envDefault:"false" doc:"true adds the keys demo-admin-key-12345 and demo-user-key-67890, which everybody knows. Only on a loopback HOST."`

	ModelAliases Aliases `env:"MODEL_ALIASES" reload:"true" doc:"Other names for models, separated by commas, each name=model; a * in the name stands for any characters. A request for\nthe name runs, and is booked and permitted as, the model; its answer carries the name. The first that fits counts.\n  MODEL_ALIASES=claude-*=qwen3-coder,gpt-4o=llama3.2"`

	DefaultUserRateLimit  int64 `env:"DEFAULT_USER_RATE_LIMIT" reload:"true" envDefault:"100" doc:"Requests in any 60 minutes for a user key that is made without a limit of its own."`
	DefaultAdminRateLimit int64 `env:"DEFAULT_ADMIN_RATE_LIMIT" reload:"true" envDefault:"1000" doc:"The same for an admin key."`

	MaxBodyBytes             Size          `env:"MAX_BODY_BYTES" envDefault:"128MiB" doc:"The largest request body, as bytes or with a unit: 64MiB, 10MB. An image of 50 MB has 67 MB in a body. Uploads of model\nfiles are not bound by it."`
	MaxBodyMemory            Size          `env:"MAX_BODY_MEMORY" envDefault:"1GiB" doc:"The memory for the bodies of all requests at one time, those below 16 KiB not counted. What\nreading one takes besides, for the names of its fields, counts too. At most 2,048 bodies\nare on their way at one time, half of them of one key. One key takes\nat most as much as is free, so that others find room; when that is too little, it is answered 503. At least twice MAX_BODY_BYTES, so that\none body of the largest size always fits. The program takes up to 150 MB besides: the memory limit of a container must be larger than\nboth together."`
	MaxRequestTime           time.Duration `env:"MAX_REQUEST_TIME" envDefault:"30m" doc:"The longest that one request may take, the wait for a slot included. Durations need a unit: 30s, 15m, 2h."`
	UpstreamFirstByteTimeout time.Duration `env:"UPSTREAM_FIRST_BYTE_TIMEOUT" envDefault:"15m" doc:"The longest wait for the first byte of Ollama's answer: loading a large model takes minutes."`
	SSEHeartbeat             time.Duration `env:"SSE_HEARTBEAT" envDefault:"15s" doc:"How long a stream of events (/v1) may be silent before the gateway writes something without meaning, so that no client takes it for dead; 0s writes nothing."`
	UpstreamIdleTimeout      time.Duration `env:"UPSTREAM_IDLE_TIMEOUT" envDefault:"5m" doc:"The longest pause within Ollama's answer. Not for pull, push, create and blobs."`

	MaxQueue       int           `env:"MAX_QUEUE" envDefault:"1024" doc:"How many requests may wait for a slot; one more is answered 503."`
	MaxQueuePerKey int           `env:"MAX_QUEUE_PER_KEY" envDefault:"128" doc:"How many requests of one key may wait for a slot, at most; one more is answered 503. A key may also have no more waiting than\nthere are free places in the queue, so that others find room. 0 leaves only that bound."`
	MaxQueueWait   time.Duration `env:"MAX_QUEUE_WAIT" envDefault:"10m" doc:"The longest wait for a slot."`
	PrefixAffinity bool          `env:"PREFIX_AFFINITY" envDefault:"true" doc:"true sends the later turns of a conversation to the Ollama server that had the earlier ones, where it has a slot: it has\nmost likely kept what it read of them."`

	DefaultMaxTokens int64         `env:"DEFAULT_MAX_TOKENS" reload:"true" envDefault:"8192" doc:"The longest answer, in tokens, of a user's request that names none: Ollama alone would write on for ten times the context.\n0 puts none in. A smaller num_predict in the model's Modelfile stays."`
	MaxNumCtx        int64         `env:"MAX_NUM_CTX" reload:"true" envDefault:"32768" doc:"The largest context (num_ctx) that a user's request may have a model loaded with; 0 is no bound."`
	MaxKeepAlive     time.Duration `env:"MAX_KEEP_ALIVE" reload:"true" envDefault:"1h" doc:"The longest time (keep_alive) for which a user's request may keep a model loaded; 0s is no bound."`
	Policy           Policies      `env:"POLICY" reload:"true" doc:"Other answers to what users' requests may set, separated by commas: field=action, or for some models pattern field=action.\nThe actions are pass, drop, refuse, default:N, max:N and set:N; docs/policy.md lists the fields. The first that fits counts.\n  POLICY='qwen3:* num_ctx=set:16384,raw=refuse'"`
	RegistryHosts    Hosts         `env:"REGISTRY_HOSTS" reload:"true" doc:"Hosts, separated by commas, that models may be pulled from, pushed to and made from, beside Ollama's own registry. The\nOllama server connects to them, with plain HTTP where a pull asks for it.\n  REGISTRY_HOSTS=hf.co,registry.example.net:5000"`

	JournalMaxBytes Size          `env:"JOURNAL_MAX_BYTES" envDefault:"128MiB" doc:"How large the journal may grow while the database takes no rows, from 16MiB on. When it is full, keys marked strict are\nrefused, and other keys are served without a row; how many is counted."`
	CountGrace      time.Duration `env:"COUNT_GRACE" envDefault:"0s" doc:"How long the answer of a client that left in the middle of a stream is read on, so that its tokens are counted and not\nestimated. Its slot stays taken meanwhile. 0s stops Ollama at once."`

	AuthFailuresPerMinute    int     `env:"AUTH_FAILURES_PER_MINUTE" envDefault:"30" doc:"How many different texts that are no keys one address may send in a minute before it must wait. A request that carries\nonly a good key is served all the same. Texts beyond that number, and those that an address repeats, are compared with\nthe keys in memory only. 0 is no bound, and reads the database for each."`
	MaxConnectionsPerAddress int     `env:"MAX_CONNECTIONS_PER_ADDRESS" envDefault:"512" doc:"How many connections one address may hold, before anybody is asked for a key. This machine and TRUSTED_PROXIES are exempt;\n0 is no bound."`
	CORSOrigins              Origins `env:"CORS_ORIGINS" reload:"true" doc:"Origins, separated by commas, whose pages may call the service from a browser. A star is the first label of a host, the\nwhole host, or the port; * is every origin but null. Keys in pages are keys that others can read.\n  CORS_ORIGINS=https://chat.example.net,http://localhost:*,https://*.example.com,chrome-extension://*"`

	TrustedProxies Networks `env:"TRUSTED_PROXIES" reload:"true" doc:"Addresses or networks, separated by commas, of the proxies whose X-Forwarded-For is believed; unix is\nwhat connects to a HOST that is a Unix socket.\n  TRUSTED_PROXIES=10.0.0.7,172.16.0.0/12"`

	ProxyProtocol ProxyProtocol `env:"PROXY_PROTOCOL" envDefault:"off" doc:"off, or required where a TCP load balancer stands in front and says with the PROXY protocol (version 1 or 2) where each\nconnection comes from. It is never guessed: with required, every connection must begin with the header and come from\nTRUSTED_PROXIES."`

	MetricsOpen bool `env:"METRICS_OPEN" envDefault:"false" doc:"true lets programs on this machine read /metrics without a key. Never set it where a proxy on this machine passes\nrequests on without X-Forwarded-For, unless TRUSTED_PROXIES names the proxy's address: everybody could read it then."`

	OTLPEndpoint       Collector   `env:"OTEL_EXPORTER_OTLP_ENDPOINT" doc:"The address of an OpenTelemetry collector (OTLP by HTTP, usually port 4318) that traces of requests are sent to, at\n/v1/traces below it. Empty: there are none. docs/tracing.md says what is in them.\n  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318"`
	OTLPHeaders        HiddenPairs `env:"OTEL_EXPORTER_OTLP_HEADERS" doc:"Headers that the collector asks for, name=value, separated by commas, with %20 for a space in a value.\n  OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20abc'"`
	ServiceName        string      `env:"OTEL_SERVICE_NAME" envDefault:"ollama-api-service" doc:"What the service is called in traces."`
	ResourceAttributes Pairs       `env:"OTEL_RESOURCE_ATTRIBUTES" doc:"More that is said of the service in traces, name=value, separated by commas.\n  OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=production"`
	TraceRatio         Part        `env:"OTEL_TRACES_SAMPLER_ARG" envDefault:"1" doc:"The part of requests that is traced: 0.1 is a tenth. It holds for requests that bring a traceparent, too; one that says that\nits own trace is not recorded is not traced at all."`
	TraceUpstream      bool        `env:"TRACE_UPSTREAM" envDefault:"false" doc:"true sends a traceparent along to the Ollama server, where something before it can use it. Ollama itself cannot."`

	LogLevel         slog.Level    `env:"LOG_LEVEL" reload:"true" envDefault:"info" doc:"debug, info, warn or error. Probes and scrapes that succeed (/health, /healthz, /readyz, /metrics) are logged at debug."`
	LogFormat        LogFormat     `env:"LOG_FORMAT" envDefault:"json" doc:"json or text, one line for each event, on standard output."`
	LogClientAddress AddressDetail `env:"LOG_CLIENT_ADDRESS" envDefault:"full" doc:"How much of a client's address the log shows: full, prefix (the first 24 bits of IPv4, 48 of IPv6) or none. The books and the\nlist of changes, which only admins read, have it whole: limits by address and inquiries need it."`

	StartWait     time.Duration `env:"START_WAIT" envDefault:"1m" doc:"How long the start waits for what may come by itself: an address or a name that is not there yet, a port or a DATA_DIR that the\nprocess before still holds, space on a full disk, a disk that is mounted later, the files of a certificate. Then it ends with\nexit 1, and the supervisor starts it again. 0s does not wait."`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" envDefault:"30s" doc:"How long running requests may go on when the service is told to stop."`

	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" doc:"How long the service accepts connections after it was told to stop, while /readyz already answers 503: as long as a load\nbalancer needs to notice. Then SHUTDOWN_GRACE begins. With systemd's socket unit no connection is refused anyway."`

	// Warnings are sentences for the log at start: settings that work but deserve a second look.
	Warnings []string

	origin *origin // by reference, so that nothing that prints settings prints it
}

// origin is where the values are from, and how they are written there, secrets and all.
type origin struct {
	file        string
	text        []byte // of the file; nil where there is none
	values      map[string]string
	environ     []string
	environment map[string]string // of environ, our names only
	files       map[string]string // of secrets that are in files, the form that names the file: SECRET_KEY_FILE, or a credential
	demo        bool              // by the command line
	socket      bool              // HOST and PORT are those of a socket that the service was given
	open        bool              // one of the sockets that it was given is reached from elsewhere
}

// Error is a setting that cannot be obeyed, in one line that names the setting and the mend and never shows the value.
// The program exits with 2.
type Error struct {
	text  string
	cause error // of the system, where there is one
}

func (e *Error) Error() string { return e.text }

// Unwrap is the cause. Its text may show a value, so only its kind is of use.
func (e *Error) Unwrap() error { return e.cause }

func errorf(format string, args ...any) *Error { return &Error{text: fmt.Sprintf(format, args...)} }

// causedBy is an Error with a cause.
func causedBy(err error, format string, args ...any) *Error {
	return &Error{fmt.Sprintf(format, args...), err}
}

// Load reads the settings: environ ("NAME=value") wins over the file dotenvPath, which need not exist, and that over the
// defaults. An empty value is none. Its errors are *Error.
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
	c.origin = &origin{file: dotenvPath, text: text, values: maps.Clone(values), environ: environ, environment: map[string]string{}, files: map[string]string{}}
	known, environment, raw := knownNames(), env.ToMap(environ), map[string]bool{}
	for name, value := range environment {
		// Only our own names: the environment is full of others, and none of those may have an effect.
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

// setting is one field of Config that has a name in the environment.
type setting struct {
	field, name, standard, doc string
	reload                     bool // it can change while the service runs
}

// settings are the settings by name.
func settings() map[string]setting {
	byName := map[string]setting{}
	for _, s := range settingList() {
		byName[s.name] = s
	}
	return byName
}

// settingList is the settings in the order of Config.
func settingList() []setting {
	var list []setting
	for f := range reflect.TypeFor[Config]().Fields() {
		if name, ok := f.Tag.Lookup("env"); ok {
			list = append(list, setting{f.Name, name, f.Tag.Get("envDefault"), f.Tag.Get("doc"), f.Tag.Get("reload") != ""})
		}
	}
	return list
}

// readable is the first error of the parser in our words. Its own text shows values.
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
	var why mend
	if errors.As(parse.Err, &why) {
		return errorf("%s %s", name, string(why))
	}
	switch {
	case parse.Type == reflect.TypeFor[time.Duration]():
		why = "must be a time with a unit, like 30s, 15m or 2h"
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

// mend is why a value is refused and what it should be: the sentence after the name of the setting.
type mend string

func (m mend) Error() string { return string(m) }

// Socket is the path of the Unix socket to listen on, or "" where HOST is an address.
func (c *Config) Socket() string {
	if filepath.IsAbs(c.Host) {
		return c.Host
	}
	return ""
}

// Address is where to listen: host and port.
func (c *Config) Address() string {
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// Scheme is what clients write before the address.
func (c *Config) Scheme() string {
	if c.TLSCert != "" || len(c.ACMEDomain) > 0 {
		return "https"
	}
	return "http"
}

// EnableDemo adds the demo keys, as DEMO_KEYS=true does. It returns an *Error where others could reach them.
func (c *Config) EnableDemo() error {
	c.DemoKeys, c.origin.demo = true, true
	return c.checkDemo()
}

func (c *Config) checkDemo() error {
	if c.DemoKeys && (!c.loopback() || c.origin != nil && c.origin.open) {
		return errorf("DEMO_KEYS (or --demo) needs a HOST that only this machine reaches, for everybody knows these keys: set HOST to 127.0.0.1, or make keys of your own")
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

// LogValue is the settings for a log line, without the secret ones.
func (c *Config) LogValue() slog.Value {
	v := reflect.ValueOf(c).Elem()
	var attrs []slog.Attr
	for _, s := range settingList() {
		attrs = append(attrs, slog.String(s.name, fmt.Sprint(v.FieldByName(s.field).Interface())))
	}
	return slog.GroupValue(attrs...)
}

// String is the settings in a line, without the secret ones.
func (c *Config) String() string { return c.LogValue().String() }
