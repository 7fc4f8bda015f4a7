package admin

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/store"
)

const csvType = "text/csv; charset=utf-8"

// ContentType is CSV if the caller asked for it.
func (b usageBody) ContentType(ct string) string { return tableType(b.asCSV, ct) }

// ContentType is CSV if the caller asked for it.
func (b requestsBody) ContentType(ct string) string { return tableType(b.asCSV, ct) }

func tableType(asCSV bool, ct string) string {
	if asCSV {
		return csvType
	}
	return ct
}

func disposition(asCSV bool, name string) string {
	if !asCSV {
		return ""
	}
	return `attachment; filename="` + name + `"`
}

// csvFormat writes bodies that are tables.
var csvFormat = huma.Format{Marshal: func(w io.Writer, v any) error {
	table, ok := v.(interface{ table() [][]string })
	if !ok {
		return fmt.Errorf("%T is not a table", v)
	}
	return csv.NewWriter(w).WriteAll(table.table())
}}

func (b usageBody) table() [][]string {
	var head []string
	for _, d := range b.GroupBy {
		head = append(head, string(d))
		if d == api.ByKey {
			head = append(head, "key_name", "revoked")
		}
	}
	rows := [][]string{append(head, "requests", "prompt_tokens", "completion_tokens", "estimated_requests", "slot_ms", "average_response_time",
		"average_time_to_first_byte", "bytes_in", "bytes_out", "last_request", "gpu_ms", "queue_ms")}
	byKey := slices.Contains(b.GroupBy, api.ByKey)
	if byKey {
		rows[0] = append(rows[0], "key_owner") // new columns come last, so that the others keep their positions
	}
	for i := range b.Usage {
		g := &b.Usage[i]
		var row []string
		for _, d := range b.GroupBy {
			row = append(row, dimensionCells(g, d)...)
		}
		row = append(row, cells(g.Requests, g.PromptTokens, g.CompletionTokens, g.Estimated, g.SlotMS, g.AverageSeconds,
			g.AverageFirstByte, g.BytesIn, g.BytesOut, g.LastRequest, g.GPUMS, g.QueueMS)...)
		if byKey {
			row = append(row, cells(g.KeyOwner)...)
		}
		rows = append(rows, row)
	}
	return rows
}

func dimensionCells(g *api.UsageGroup, d api.Dimension) []string {
	switch d {
	case api.ByKey:
		return cells(g.Key, g.KeyName, g.Revoked)
	case api.ByModel:
		return cells(g.Model)
	case api.ByEndpoint:
		return cells(g.Endpoint)
	case api.ByBackend:
		return cells(g.Backend)
	case api.ByOutcome:
		return cells(g.Outcome)
	}
	return cells(g.Start)
}

func (b requestsBody) table() [][]string {
	rows := [][]string{{
		"id", "client_request_id", "at", "key", "key_name", "model", "alias", "endpoint", "class", "backend",
		"outcome", "status", "error_code", "streamed",
		"prompt_tokens", "completion_tokens", "estimated", "ttfb_ms", "total_ms", "slot_ms",
		"ollama_total_ns", "ollama_load_ns", "ollama_prompt_eval_ns", "ollama_eval_ns",
		"bytes_in", "bytes_out", "client_addr", "gpu_ms", "load_ms",
		"reserved_tokens", "queue_ms", "loading_ms", "key_owner",
	}}
	for i := range b.Requests {
		r := &b.Requests[i]
		rows = append(rows, cells(
			r.ID, r.ClientRequestID, &r.At, r.Key, r.KeyName, r.Model, r.Alias, r.Endpoint, r.Class, r.Backend,
			string(r.Outcome), int64(r.Status), string(r.ErrorCode), r.Streamed,
			r.PromptTokens, r.CompletionTokens, r.Estimated, r.FirstByteMS, r.TotalMS, r.SlotMS,
			r.OllamaTotal, r.OllamaLoad, r.OllamaPromptEval, r.OllamaEval,
			r.BytesIn, r.BytesOut, r.ClientAddr, r.GPUMS, r.LoadMS,
			r.Reserved, r.QueueMS, r.LoadingMS, r.KeyOwner,
		))
	}
	return rows
}

// cells returns values as CSV cells; nil is an empty cell.
func cells(values ...any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case string:
			out[i] = noFormula(v)
		case *string:
			if v != nil {
				out[i] = noFormula(*v)
			}
		case int64:
			out[i] = strconv.FormatInt(v, 10)
		case *int64:
			if v != nil {
				out[i] = strconv.FormatInt(*v, 10)
			}
		case float64:
			out[i] = strconv.FormatFloat(v, 'f', -1, 64)
		case *float64:
			if v != nil {
				out[i] = strconv.FormatFloat(*v, 'f', -1, 64)
			}
		case bool:
			out[i] = strconv.FormatBool(v)
		case *time.Time:
			if v != nil {
				out[i] = v.Format(time.RFC3339Nano)
			}
		}
	}
	return out
}

// noFormula keeps a spreadsheet from running a text: people choose the names of keys and models (owasp.org, CSV injection).
func noFormula(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// tableResponse describes an answer that is JSON or CSV. huma adds the schema of the JSON.
func tableResponse(example any, asCSV string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{
		"application/json": {Example: example},
		"text/csv":         {Schema: &huma.Schema{Type: huma.TypeString}, Example: asCSV},
	}}}
}

// ExampleTime is the time in all examples.
var ExampleTime = time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)

var (
	usageExample = func() usageBody {
		seconds, first := 1.5, 0.25
		day, key := ExampleTime.Truncate(24*time.Hour), "oas_8rT2kLmN0q"
		used := api.Usage{
			Requests: 42, PromptTokens: 1234, CompletionTokens: 5678, SlotMS: 63000, GPUMS: 41000,
			AverageSeconds: &seconds, AverageFirstByte: &first,
			BytesIn: 9876, BytesOut: 54321, LastRequest: &ExampleTime,
		}
		return usageBody{
			From: day, To: ExampleTime, GroupBy: []api.Dimension{api.ByKey, api.ByDay}, Groups: 1, Total: used,
			Usage: []api.UsageGroup{{Start: &day, Key: &key, KeyLabel: api.KeyLabel{KeyName: "Production API Key"}, Usage: used}},
		}
	}()
	requestsExample = func() requestsBody {
		id := "019ab7a2-6f3e-7c51-9d1b-2f0c7e4a8b90"
		next := cursor(store.Place{At: ExampleTime.UnixMilli(), ID: id})
		first, total, gpu, loaded, eval := 250.5, 1500.25, 990.5, 12.75, int64(1200000000)
		return requestsBody{NextCursor: &next, Requests: []requestRow{{
			ID: id, At: ExampleTime, Key: "oas_8rT2kLmN0q", KeyLabel: api.KeyLabel{KeyName: "Production API Key"},
			Model: "llama3.2:latest", Endpoint: "/api/chat", Class: "inference", Backend: "ollama",
			Outcome: api.OutcomeOK, Status: 200, Streamed: true, PromptTokens: 26, CompletionTokens: 120,
			FirstByteMS: &first, TotalMS: &total, SlotMS: 1490, GPUMS: &gpu, LoadMS: &loaded,
			OllamaTotal: &eval, OllamaLoad: new(int64), OllamaPromptEval: new(int64), OllamaEval: &eval,
			BytesIn: 180, BytesOut: 9100, ClientAddr: "10.0.0.7",
		}}}
	}()
)
