package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"slices"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/proxy"
)

// allServers is the name for all servers in X-Backend and in the books.
const allServers = "*"

// onAll are the routes that may run on all servers, because they do the same on each server. A push from each server would push several
// times, and the files for create are uploaded to only one server.
var onAll = map[string]bool{"/api/pull": true, "/api/copy": true, "/api/delete": true}

// changeResult is the result of a change on one server.
type changeResult struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

// everywhere changes the models of each server, one after the other, because the servers share the connection to the registry and clients
// show one progress. If a server fails, the others are still changed.
func (b *booking) everywhere() error {
	results := make(map[string]changeResult)
	var failed []string
	for _, at := range b.targets {
		r, err := b.changeOne(at)
		if err != nil {
			return b.failed(err)
		}
		results[at.Name] = r
		if !good(r.Status) {
			failed = append(failed, at.Name)
		}
	}
	if b.x.route.kind == dialect.Delete && len(failed) < len(results) {
		// A model that the server did not have needs no deletion.
		failed = slices.DeleteFunc(failed, func(name string) bool { return results[name].Status == http.StatusNotFound })
	}
	answer := map[string]any{"backends": results, "status": "success"}
	outcome, code, status := api.OutcomeOK, api.Code(""), http.StatusOK
	if b.x.route.kind != dialect.Transfer {
		status = http.StatusMultiStatus // a 200 of these has no body
	}
	if len(failed) > 0 {
		first := results[failed[0]]
		sentence := failed[0] + ": " + first.Error
		answer = map[string]any{"backends": results, "error": sentence, "detail": sentence}
		status = first.Status
		outcome, code = b.outcome(status)
	}
	return b.answered(answer, status, outcome, code)
}

// answered sends the last record of a change on several servers.
func (b *booking) answered(answer map[string]any, status int, outcome api.Outcome, code api.Code) error {
	body, err := json.Marshal(answer)
	if err != nil {
		return b.failed(err)
	}
	if b.x.started() {
		body = append(body, '\n')
		b.record.Status = b.x.status
	} else {
		b.record.Status, b.x.planned = status, status
		b.x.Header()["Content-Type"] = []string{"application/json"}
	}
	b.record.BytesOut = b.x.sent + int64(len(body))
	b.end(outcome, code)
	return b.last(body)
}

// changeOne changes the models of one server. It returns an error only if the client has left or the gateway stops. All other failures are
// in the result.
func (b *booking) changeOne(at *backend.Backend) (changeResult, error) {
	resp, err := b.sendTo(at, b.x.changeRequest(b.req))
	if err == nil {
		defer resp.Close()
		if stream, _ := resp.Streams(); stream && good(resp.Status) {
			var r changeResult
			if r, err = b.relay(at, resp); err == nil {
				return r, nil
			}
		}
	}
	var body []byte
	if err == nil {
		body, _, err = resp.Head(maxSentence)
	}
	switch e := api.AsError(err); {
	case err == nil && good(resp.Status):
		return changeResult{Status: resp.Status}, nil
	case err == nil:
		return changeResult{resp.Status, dialect.Sentence(body)}, nil
	case e.Code == api.CodeClientGone || e.Code == api.CodeStopping:
		return changeResult{}, e
	default:
		return changeResult{statuses[e.Code], e.Message}, nil
	}
}

// maxLine bounds a record of a server's progress.
const maxLine = 1 << 20

// relay forwards a server's progress to the client, and adds the server's name to each record. It rewrites the server's last record,
// because a client would take "success" or an error for the end of the whole change.
func (b *booking) relay(at *backend.Backend, resp *proxy.Response) (changeResult, error) {
	if !b.x.started() {
		b.header(resp, -1)
	}
	result := changeResult{Status: http.StatusBadGateway, Error: "the progress ended without a result"}
	lines := bufio.NewScanner(resp)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var line struct{ Status, Error string }
		text := lines.Bytes()
		if json.Unmarshal(text, &line) != nil || line.Status == "" && line.Error == "" {
			continue // the record has no information
		}
		switch {
		case line.Error != "":
			result = changeResult{Status: http.StatusBadGateway, Error: line.Error}
			text, _ = json.Marshal(map[string]string{"status": at.Name + ": " + line.Error})
		case line.Status == "success":
			result = changeResult{Status: http.StatusOK}
			text, _ = json.Marshal(map[string]string{"status": at.Name + ": success"})
		}
		if err := b.progress(text, at.Name); err != nil {
			return result, err
		}
	}
	return result, lines.Err()
}

// progress sends a record with the name of its server.
func (b *booking) progress(record []byte, name string) error {
	end := bytes.LastIndexByte(record, '}')
	line := slices.Concat(record[:end], []byte(`,"backend":`), dialect.Quote(name), []byte("}\n"))
	_, err := b.x.Write(line)
	if err == nil {
		err = b.x.FlushError()
	}
	if err != nil {
		return api.Wrap(api.CodeClientGone, err, "the client went away")
	}
	return nil
}
