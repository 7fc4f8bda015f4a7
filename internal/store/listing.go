package store

import (
	"context"
	"database/sql"
	"time"

	"ollama-api-service/internal/api"
)

// RequestQuery asks for booked requests, the newest first, at most Limit of those that lie behind Before. Its zero Before is
// the newest of all.
type RequestQuery struct {
	api.RequestFilter
	Before Place
	Limit  int
}

// Place is a booked request's place in the list. It stays the same whatever is added.
type Place struct {
	At int64 // milliseconds
	ID string
}

// Requests lists booked requests. A next of nil says that there are no more; else it is the Before of the next page. A request
// is listed when it has ended, at the time it was admitted: one that ends late may come into a page that was read already.
func (s *Store) Requests(ctx context.Context, q RequestQuery) (list []api.Record, next *Place, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		from, to, some, err := q.narrow(ctx, tx)
		if err != nil || !some {
			return err
		}
		b := &builder{}
		where := b.within("at", from, to) + b.filter(&q.RequestFilter)
		if q.Before.ID != "" {
			where += " AND (at, id) < (" + b.param(q.Before.At) + ", " + b.param(q.Before.ID) + ")"
		}
		return rows(ctx, tx, `SELECT `+recordColumns+` FROM requests WHERE `+where+` ORDER BY at DESC, id DESC LIMIT `+b.param(q.Limit+1),
			func(r *sql.Rows) error {
				record, err := scanRecord(r)
				list = append(list, record)
				return err
			}, b.args...)
	})
	if err != nil {
		return nil, nil, err
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		last := list[q.Limit-1]
		next = &Place{millis(last.At), last.ID}
	}
	return list, next, nil
}

// narrow is the span in which the page lies. Rows are found by time and by key alone: for what is rare, or not there at all,
// the days that have it are read from the rollup first, so that not all rows in between are.
func (q *RequestQuery) narrow(ctx context.Context, tx *sql.Tx) (from, to int64, some bool, err error) {
	from, to = span(&q.RequestFilter)
	if q.Before.ID != "" && (to < 0 || q.Before.At < to) {
		to = q.Before.At + 1
	}
	if len(q.Models)+len(q.Endpoints)+len(q.Backends)+len(q.Outcomes) == 0 {
		return from, to, true, nil
	}
	b := &builder{}
	days := `SELECT start, SUM(count) FROM usage_period WHERE width = ` + b.param(dayMS) + ` AND ` + b.within("start", down(from, dayMS), to) +
		b.filter(&q.RequestFilter) + ` GROUP BY start ORDER BY start DESC`
	var newest, oldest, found int64
	err = rows(ctx, tx, days, func(r *sql.Rows) error {
		var start, n int64
		if err := r.Scan(&start, &n); err != nil || found > int64(q.Limit) {
			return err
		}
		if newest == 0 {
			newest = start + dayMS
		}
		oldest = start
		// Of a day that the span's end cuts, nobody knows how many lie within.
		if to < 0 || start+dayMS <= to {
			found += n
		}
		return nil
	}, b.args...)
	if to < 0 || newest < to {
		to = newest
	}
	return max(from, oldest), to, newest > 0, err
}

const recordColumns = `id, client_request_id, at, key, model, alias, endpoint, class, backend, outcome, status, error_code, streamed, prompt_tokens,
	completion_tokens, estimated, ttfb_ms, total_ms, slot_ms, ollama_total_ns, ollama_load_ns, ollama_prompt_eval_ns, ollama_eval_ns, bytes_in,
	bytes_out, client_addr, gpu_ms, COALESCE(reserved_tokens, 0)`

// scanRecord reads recordColumns.
func scanRecord(r *sql.Rows) (api.Record, error) {
	var out api.Record
	var at, streamed, estimated int64
	var firstByte, gpu sql.NullFloat64
	var total, slot float64
	var ollama [4]sql.NullInt64
	err := r.Scan(&out.ID, &out.ClientRequestID, &at, &out.Key, &out.Model, &out.Alias, &out.Endpoint, &out.Class, &out.Backend, &out.Outcome, &out.Status,
		&out.ErrorCode, &streamed, &out.PromptTokens, &out.CompletionTokens, &estimated, &firstByte, &total, &slot, &ollama[0], &ollama[1], &ollama[2],
		&ollama[3], &out.BytesIn, &out.BytesOut, &out.ClientAddr, &gpu, &out.Reserved)
	out.At, out.Streamed, out.Estimated = instant(at), streamed != 0, estimated != 0
	out.FirstByte, out.Total, out.Slot = duration(firstByte.Float64), duration(total), duration(slot)
	out.GPU = -1
	if gpu.Valid {
		out.GPU = duration(gpu.Float64)
	}
	for i, into := range []**time.Duration{&out.OllamaTotal, &out.OllamaLoad, &out.OllamaPromptEval, &out.OllamaEval} {
		if ollama[i].Valid {
			d := time.Duration(ollama[i].Int64)
			*into = &d
		}
	}
	return out, err
}

// duration is the inverse of milliseconds.
func duration(ms float64) time.Duration { return time.Duration(ms*float64(time.Millisecond) + 0.5) }
