package server

import (
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/sched"
)

const (
	metricPrefix = "ollama_api_"
	// mostModels bounds the label "model", for clients choose the names. All further models are otherName.
	mostModels = 100
	otherName  = "(other)"
	noName     = "(none)"
)

// metrics are what /metrics shows. docs/metrics.md explains each. No label is a key, an address or a path.
type metrics struct {
	registry *prometheus.Registry
	handler  http.Handler
	requests *prometheus.CounterVec
	refused  map[api.Code]prometheus.Counter
	failed   map[api.Code]prometheus.Counter
	unread   *prometheus.CounterVec
	booked   *prometheus.CounterVec
	tokens   *prometheus.CounterVec
	failover *prometheus.CounterVec
	slots    *prometheus.CounterVec
	gpu      *prometheus.CounterVec
	changes  *prometheus.CounterVec
	changing *prometheus.CounterVec
	placed   *prometheus.CounterVec
	first    *prometheus.HistogramVec
	response *prometheus.HistogramVec
	each     *prometheus.HistogramVec
	waited   prometheus.Histogram
	open     prometheus.Gauge

	answers cache[answer, prometheus.Counter]
	used    cache[served, *usedSeries]
	models  map[string]bool // names that are labels; used.mu guards it
}

// answer is what one series of requests counts.
type answer struct {
	route  *route // nil where none was found
	method string // "" where the route says it
	status int
}

// served is what the series of booked requests are told apart by.
type served struct{ model, backend string }

// usedSeries are the series of one model at one backend, looked up once.
type usedSeries struct {
	outcomes           map[api.Outcome]prometheus.Counter
	prompt, completion [2]prometheus.Counter // counted, estimated
	slot, gpu          prometheus.Counter
	first, response    prometheus.Observer
	each               prometheus.Observer
}

// cache finds series without a lock and without garbage once they are known.
type cache[K comparable, V any] struct {
	mu    sync.Mutex
	known atomic.Pointer[map[K]V]
}

func (c *cache[K, V]) find(k K) (V, bool) {
	if known := c.known.Load(); known != nil {
		v, ok := (*known)[k]
		return v, ok
	}
	var none V
	return none, false
}

func (c *cache[K, V]) addLocked(k K, v V) {
	grown := make(map[K]V)
	if known := c.known.Load(); known != nil {
		maps.Copy(grown, *known)
	}
	grown[k] = v
	c.known.Store(&grown)
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), models: map[string]bool{},
		refused: map[api.Code]prometheus.Counter{}, failed: map[api.Code]prometheus.Counter{},
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError})
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.requests = counters("requests_total", "HTTP requests answered.", "method", "route", "class", "status")
	m.booked = counters("booked_requests_total", "Requests on the books: inference and changes of models.", "model", "backend", "outcome")
	m.tokens = counters("tokens_total", "Tokens of booked requests.", "model", "direction", "estimated")
	m.slots = counters("slot_seconds_total", "Time for which slots of the backend were held.", "model", "backend")
	m.failover = counters("failovers_total", "Requests that went to another server, for this one answered nothing or was busy.", "backend")
	m.changes = counters("model_changes_total", "Models that a backend loaded because requests waited for them, failed to, or loaded again unasked.", "backend", "result")
	m.changing = counters("model_change_seconds_total", "Time for which a backend loaded models that requests waited for, and served nothing else.", "backend")
	for _, b := range s.Fleet.All() {
		m.changing.WithLabelValues(b.Name)
		m.changes.WithLabelValues(b.Name, "done")
		m.changes.WithLabelValues(b.Name, "failed")
	}
	m.placed = counters("placements_total", "Requests that were given a slot, by why they went to the backend.", "backend", "reason")
	m.gpu = counters("gpu_seconds_total", "Time of the backend, divided among the requests that run: never more than passed.", "model", "backend")
	refused := counters("refused_requests_total", "Requests that ended in an error and are not on the books: refused ones, and failed lists of models.", "reason")
	failed := counters("failed_requests_total", "Requests on the books that did not end well.", "reason")
	for code := range statuses { // all from the start: a rate needs the 0 before the first
		m.refused[code], m.failed[code] = refused.WithLabelValues(string(code)), failed.WithLabelValues(string(code))
	}
	m.unread = counters("refused_connections_total", "Connections refused or ended before a whole request was read from them.", "reason")
	for reason := range refusalWords {
		m.unread.WithLabelValues(string(reason))
	}
	m.first = prometheus.NewHistogramVec(histogram("time_to_first_token_seconds", "From arrival of a streamed inference request to the first byte of its answer.",
		.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300), []string{"model"})
	m.response = prometheus.NewHistogramVec(histogram("response_seconds", "From arrival of an inference request to the end of its answer, where that is whole.",
		.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800), []string{"model"})
	m.each = prometheus.NewHistogramVec(histogram("time_per_output_token_seconds", "From the first byte of a streamed answer to its end, divided by the tokens after the first.",
		.005, .01, .02, .03, .05, .075, .1, .2, .5, 1, 2), []string{"model"})
	m.waited = prometheus.NewHistogram(histogram("queue_wait_seconds", "Wait of an inference request for a slot.",
		.01, .1, .5, 1, 5, 10, 30, 60, 300, 600))
	m.open = prometheus.NewGauge(prometheus.GaugeOpts{Name: metricPrefix + "open_requests", Help: "HTTP requests being answered now, those that wait and those for metrics included."})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: metricPrefix + "build_info", Help: "Version of the service; always 1.",
		ConstLabels: prometheus.Labels{"version": s.Version, "go_version": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.first, m.response, m.each, m.waited, m.open, build, &states{m: m, s: s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// histogram is native (sparse buckets, each 10 % wide), with classic buckets for a Prometheus that does not know those.
func histogram(name, help string, buckets ...float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name: metricPrefix + name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
	}
}

// ended counts a request that is over.
func (m *metrics) ended(x *exchange) {
	key := answer{route: x.route, status: x.loggedStatus()}
	if x.route == nil {
		key.method = logMethod(x.r.Method)
	}
	c, ok := m.answers.find(key)
	if !ok {
		c = m.newAnswer(key)
	}
	c.Inc()
	if x.err != nil && x.record == nil {
		if c := m.refused[x.err.Code]; c != nil {
			c.Inc()
		}
	}
}

func (m *metrics) newAnswer(key answer) prometheus.Counter {
	m.answers.mu.Lock()
	defer m.answers.mu.Unlock()
	method, template, class := key.method, noName, noName
	if r := key.route; r != nil {
		method, template, class = r.method, r.template, purposeNames[r.purpose]
	}
	c := m.requests.WithLabelValues(method, template, class, strconv.Itoa(key.status))
	m.answers.addLocked(key, c)
	return c
}

// book counts a request that is on the books.
func (m *metrics) book(r *api.Record) {
	u := m.series(r)
	if c := u.outcomes[r.Outcome]; c != nil {
		c.Inc()
	}
	if c := m.failed[r.ErrorCode]; c != nil && r.Outcome != api.OutcomeOK {
		c.Inc()
	}
	if r.Class != purposeNames[inference] {
		return
	}
	how := 0
	if r.Estimated {
		how = 1
	}
	u.prompt[how].Add(float64(r.PromptTokens))
	u.completion[how].Add(float64(r.CompletionTokens))
	u.slot.Add(r.Slot.Seconds())
	u.gpu.Add(max(r.GPU, 0).Seconds())
	m.waited.Observe(max(r.Queued, 0).Seconds())
	if r.Streamed && r.FirstByte > 0 && good(r.Status) {
		u.first.Observe(r.FirstByte.Seconds())
	}
	if r.Outcome != api.OutcomeOK {
		return
	}
	u.response.Observe(r.Total.Seconds())
	// One token has no time between tokens, and without Ollama's own count their number is unknown.
	if rest := r.CompletionTokens - 1; rest > 0 && r.Streamed && !r.Estimated && r.FirstByte > 0 {
		u.each.Observe((r.Total - r.FirstByte).Seconds() / float64(rest))
	}
}

// granted counts a slot.
func (m *metrics) granted(l *sched.Lease) {
	m.placed.WithLabelValues(l.Backend.Name, string(l.Why)).Inc()
}

// moved counts a request that went from a server to another.
func (m *metrics) moved(from string) { m.failover.WithLabelValues(from).Inc() }

// changed counts a load.
func (m *metrics) changed(backend string, took time.Duration, err error) {
	result := "done"
	if err != nil {
		result = "failed"
	}
	m.loaded(backend, result, took)
}

func (m *metrics) loaded(backend, result string, took time.Duration) {
	m.changes.WithLabelValues(backend, result).Inc()
	m.changing.WithLabelValues(backend).Add(took.Seconds())
}

func good(status int) bool { return status >= 200 && status < 300 }

// series finds the series of a model, and makes them where its name is worth a label: a backend has answered for it. Names that
// clients made up, and those beyond the bound, share one label.
func (m *metrics) series(r *api.Record) *usedSeries {
	if u, ok := m.used.find(served{r.Model, r.Backend}); ok {
		return u
	}
	m.used.mu.Lock()
	defer m.used.mu.Unlock()
	key := served{r.Model, r.Backend}
	if r.Class == purposeNames[inference] && good(r.Status) && r.Model != api.UnknownModel && len(m.models) < mostModels {
		m.models[r.Model] = true
	}
	if r.Model != "" && !m.models[r.Model] {
		key.model = otherName
	}
	u, ok := m.used.find(key)
	if !ok {
		u = m.newSeries(key)
		m.used.addLocked(key, u)
	}
	return u
}

// labels reports whether a model's name is used as a label.
func (m *metrics) labels(model string) bool {
	m.used.mu.Lock()
	defer m.used.mu.Unlock()
	return m.models[model]
}

func (m *metrics) newSeries(key served) *usedSeries {
	model := key.model
	if model == "" {
		model = noName
	}
	u := &usedSeries{
		outcomes: map[api.Outcome]prometheus.Counter{},
		slot:     m.slots.WithLabelValues(model, key.backend), gpu: m.gpu.WithLabelValues(model, key.backend),
		first: m.first.WithLabelValues(model), response: m.response.WithLabelValues(model), each: m.each.WithLabelValues(model),
	}
	for _, o := range api.Outcomes {
		u.outcomes[o] = m.booked.WithLabelValues(model, key.backend, string(o))
	}
	for how, estimated := range []string{"false", "true"} {
		u.prompt[how] = m.tokens.WithLabelValues(model, "prompt", estimated)
		u.completion[how] = m.tokens.WithLabelValues(model, "completion", estimated)
	}
	return u
}

// scrape answers GET /metrics in the form that is asked for: only the protobuf one carries native histograms.
func (s *Server) scrape(x *exchange) error {
	s.metrics.handler.ServeHTTP(x, x.r)
	return nil
}

// states reads how things are when a scrape asks.
type states struct {
	m *metrics // s.metrics, before that is set
	s *Server
}

// Describe lists the metrics.
func (c *states) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// sample sends a value of a metric. labels are their names and values in turn.
type sample func(name, help string, value float64, labels ...string)

func sendsTo(out chan<- prometheus.Metric, kind prometheus.ValueType) sample {
	return func(name, help string, value float64, labels ...string) {
		var names, values []string
		for pair := range slices.Chunk(labels, 2) {
			names, values = append(names, pair[0]), append(values, pair[1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(metricPrefix+name, help, names, nil), kind, value, values...)
	}
}

// Collect reads them.
func (c *states) Collect(out chan<- prometheus.Metric) {
	gauge := sendsTo(out, prometheus.GaugeValue)
	queue, journal := c.s.Sched.Snapshot(), c.s.Books.Depth()
	for _, b := range c.s.Fleet.All() {
		gauge("in_flight_requests", "Slots of the backend in use.", float64(queue.ByBackend[b.Name]), "backend", b.Name)
		collectBackend(gauge, b)
	}
	gauge("waiting_requests", "Requests that wait for a slot.", float64(queue.Waiting))
	for class, n := range queue.ByClass {
		gauge("waiting_requests_by_class", "Requests that wait for a slot, by the class of their keys.", float64(n), "class", class)
	}
	for _, st := range c.s.Sched.Models() {
		if c.m.labels(st.Model) {
			gauge("model_slots", "Requests that the backend is given at one time for a model in its memory: set, or found by watching.", float64(st.Slots), "model", st.Model, "backend", st.Backend)
		}
	}
	gauge("waiting_requests_limit", "How many requests may wait (MAX_QUEUE).", float64(queue.Limit))
	gauge("journal_bytes", "Size of the journal.", float64(journal.JournalBytes))
	gauge("journal_bytes_limit", "How large the journal may become (JOURNAL_MAX_BYTES). Then requests are refused.", float64(journal.JournalMaxBytes))
	gauge("journal_waiting_rows", "Requests that have ended and are not in the database yet.", float64(journal.Waiting))
	gauge("journal_open_requests", "Requests that are admitted and have not ended.", float64(journal.Open))
	gauge("read_on_requests", "Answers that are read on for their count, for their clients have left (COUNT_GRACE). Each has a slot.", float64(c.s.readOn.Load()))
	gauge("journal_unwritten_records", "Records that are only in memory, because the disk accepts no writes.", float64(journal.Unwritten))
	for part, problem := range map[string]string{"journal": journal.JournalError, "database": journal.StoreError} {
		gauge("journal_failing", "Whether the journal, or the database behind it, takes nothing at present.", number(problem != ""), "part", part)
	}
	c.collectBooks(out, journal.Lost)
	if c.s.BackupEvery > 0 {
		last := 0.0
		if at := c.s.LastBackup(); !at.IsZero() {
			last = float64(at.Unix())
		}
		gauge("last_backup_timestamp_seconds", "When the newest good scheduled backup was made; 0 is never.", last)
		gauge("backup_interval_seconds", "How often a backup is due (BACKUP_EVERY).", c.s.BackupEvery.Seconds())
	}
	if c.s.Expiry != nil {
		for name, at := range c.s.Expiry() {
			gauge("tls_certificate_expiry_timestamp_seconds", "When the certificate of a name ends.", float64(at.Unix()), "name", name)
		}
	}
}

func collectBackend(gauge sample, b *backend.Backend) {
	state := b.State()
	if slots := b.Bounds().Slots; slots > 0 {
		gauge("slots_per_model", "Requests that the backend is given at one time, for each model, where that is set.", float64(slots), "backend", b.Name)
	}
	gauge("backend_up", "Whether the backend answered when it was last heard of.", number(state.Healthy), "backend", b.Name)
	gauge("backend_draining", "Whether the backend gets no new requests.", number(state.Draining), "backend", b.Name)
	gauge("backend_info", "Version of the backend; always 1.", 1, "backend", b.Name, "version", state.Version)
	if state.Loaded != nil {
		vram := int64(0)
		for _, m := range state.Loaded {
			vram += m.VRAM
		}
		gauge("backend_loaded_models", "Models in the memory of the backend.", float64(len(state.Loaded)), "backend", b.Name)
		gauge("backend_loaded_vram_bytes", "What they take of the memory of its GPUs.", float64(vram), "backend", b.Name)
	}
	if !state.Checked.IsZero() {
		checked := float64(state.Checked.UnixMilli()) / 1000
		gauge("backend_last_probe_timestamp_seconds", "When the backend was last probed.", checked, "backend", b.Name)
	}
}

func (c *states) collectBooks(out chan<- prometheus.Metric, lost int64) {
	count := sendsTo(out, prometheus.CounterValue)
	b := c.s.Books.Batches()
	for result, n := range map[string]int64{"moved": b.Moved, "failed": b.Failed} {
		count("store_batches_total", "Batches of rows that the database took or failed to take.", float64(n), "result", result)
	}
	count("store_rows_total", "Rows that the database took.", float64(b.Rows))
	count("store_batch_seconds_total", "Time that the database needed for batches.", b.Took.Seconds())
	count("lost_rows_total", "Requests that were served and have no row.", float64(lost))
	count("log_lines_lost_total", "Lines of the log that were lost, because what reads it did not take them.", float64(c.s.logLinesLost()))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// refuse counts a connection that no request was read from.
func (m *metrics) refuse(reason refusalReason) { m.unread.WithLabelValues(string(reason)).Inc() }
