package server_test

import (
	"io"
	"net/http/httptrace"
	"testing"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dialect"
	"ollama-api-service/internal/server"
)

// settingsOf returns settings that a request uses at its beginning (the origin of its page) and after its body was read (the model
// of an alias, the largest context), so that a mixture of old and new settings is visible.
func settingsOf(t *testing.T, origin, model string, context int64) server.Live {
	t.Helper()
	o, err := api.ParseOrigin(origin)
	if err != nil {
		t.Fatal(err)
	}
	alias, err := api.ParseAlias("other=" + model)
	if err != nil {
		t.Fatal(err)
	}
	return server.Live{
		DefaultLimits: map[api.Role]int64{api.RoleUser: 1_000_000}, StaticAdmin: true,
		Origins: []api.Origin{o}, Aliases: api.Aliases{alias}, Standard: dialect.Standard(context, time.Hour, 0),
	}
}

// A request that began before a change of the settings keeps the old settings to its end.
func TestARequestSeesOneSnapshot(t *testing.T) {
	first := settingsOf(t, "https://first.example", "tiny", 1111)
	b := start(t, setup{change: func(o *server.Options) { o.Live = first }})
	user := b.user()
	const body = `{"model":"other","messages":[{"role":"user","content":"x"}],"options":{"num_ctx":99999},"stream":false}`
	in, out := io.Pipe()
	began := make(chan struct{})
	req := b.request("POST", "/api/chat", user, "")
	req.Body, req.ContentLength = in, int64(len(body))
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Origin", "https://first.example")
	req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(began) }}))
	b.client.Transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	answered := make(chan reply, 1)
	go func() { answered <- b.send(req) }()
	go func() {
		<-began // the handler reads the body
		b.server.Change(settingsOf(t, "https://second.example", "second", 2222))
		io.WriteString(out, body)
		out.Close()
	}()
	r := <-answered
	if r.status != 200 || r.header.Get("X-Policy") != "num_ctx=1111" || r.header.Get("Access-Control-Allow-Origin") != "https://first.example" {
		t.Errorf("%d, X-Policy %q for %q: %s; want the old settings", r.status, r.header.Get("X-Policy"), r.header.Get("Access-Control-Allow-Origin"), r.body)
	}
	// The next request uses the new settings: its alias leads to a model that does not exist.
	next := b.request("POST", "/api/chat", user, body)
	next.Header.Set("Origin", "https://second.example")
	if r := b.send(next); r.status != 404 || r.header.Get("Access-Control-Allow-Origin") != "https://second.example" {
		t.Errorf("%d for %q: %s; want the new settings", r.status, r.header.Get("Access-Control-Allow-Origin"), r.body)
	}
}
