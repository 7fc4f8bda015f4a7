package server

import (
	"log/slog"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/explain"
	"ollama-api-service/internal/proxy"
	"ollama-api-service/internal/sched"
)

// observers are told what happens to a request. Each function of this file is an event, and tells everyone who wants to know of it: the
// explanation (history), the trace, the metrics, the log and the books' tallies. What the books charge is in record, which booking fills.
type observers struct {
	record  *api.Record      // the row of the request; nil before the admission
	history *explain.History // for /api/admin/explain; nil if the request asked for no slot
	trace   *requestTrace    // for the collector; nil if the request is not traced
}

// waits is told when the request begins to wait for a slot: at first, or after a server failed.
func (x *exchange) waits(model string) {
	if x.history == nil {
		x.history = x.s.recent.Begin(x.id, x.key, model, x.route.template)
	}
	x.trace.waits()
}

// waited is told when the wait for a slot ends: with a lease, or with err.
func (x *exchange) waited(lease *sched.Lease, err error) {
	x.history.Granted(lease, err)
	x.trace.waited(err)
	if err == nil {
		x.s.metrics.granted(lease)
	}
}

// refused is told why a request got no server.
func (x *exchange) refused(err error) { x.history.Refused(api.AsError(err).Code) }

// sends is told before the request is sent to the server of its lease. It may add the trace's id to what is sent.
func (b *booking) sends(up *proxy.Request) { b.x.trace.sends(b, up) }

// moved is told when a server did not serve the request, which waits for another one then. resp is nil if the server did not answer.
func (b *booking) moved(from string, resp *proxy.Response, failed error) {
	b.x.history.Moved(whyMoved(resp, failed))
	b.x.trace.moved(failed)
	b.s.metrics.moved(from)
}

// finished is told the end of the answer, which says why the model stopped.
func (b *booking) finished(end []byte) { b.x.trace.finished(end) }

// booked is told when the record of the request is complete.
func (b *booking) booked() {
	b.s.found(b.lease, &b.record)
	b.x.history.Booked(&b.record, b.charged+b.lease.Charged())
	b.x.trace.booked(b.x, &b.record)
	b.s.metrics.book(&b.record)
}

// ended is told when the request is over, booked or not.
func (x *exchange) ended() {
	x.s.recent.End(x.history)
	x.trace.ended(x)
	x.s.metrics.ended(x)
	x.s.tally(x)
	x.s.logRequest(x)
}

// tally counts a request that has no row in the books: a refusal, or a question about models.
func (s *Server) tally(x *exchange) {
	switch {
	case x.err == nil && x.key != nil && x.route != nil && x.route.purpose == metadata:
		s.Books.Tally(x.key.Preview, "metadata")
	case x.err != nil && (x.err.Code == api.CodeBadRequest || x.logLevel() == slog.LevelWarn):
		s.Books.Refuse(x.who(), x.err.Code)
	}
}
