package server_test

import (
	"net/netip"
	"strings"
	"testing"

	"ollama-api-service/internal/server"
)

// Each way in which proxies write the client's address, with a key that works from only one network.
func TestWaysToWriteAClientsAddress(t *testing.T) {
	b := start(t, setup{change: func(o *server.Options) {
		o.Live.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8")}
	}})
	key, _ := b.key(`{"name":"office","role":"user","allowed_ips":["203.0.113.0/24","2001:db8::/64"]}`)
	for entry, status := range map[string]int{
		"203.0.113.7":                         200,
		"203.0.113.7:51008":                   200,
		" 203.0.113.7:51008 ":                 200,
		"2001:db8::1":                         200,
		"[2001:db8::1]":                       200,
		"[2001:db8::1]:443":                   200,
		"2001:db8::1%eth0":                    200,
		"[2001:db8::1%eth0]:443":              200,
		"[2001:db8::1%25eth0]":                200,
		"::ffff:203.0.113.7":                  200,
		"[::ffff:203.0.113.7]:51008":          200,
		`"[2001:db8::1]:443"`:                 200,
		"198.51.100.1, 203.0.113.7:51008":     200,
		"203.0.113.7:51008, 10.1.2.3:80":      200,
		"198.51.100.1:80":                     403,
		"[2001:db8:0:1::1]:443":               403,
		"203.0.113.7:51008, 198.51.100.1:1":   403,
		"203.0.113.7:51008, unknown":          403, // the entries before it are ignored
		"203.0.113.7, _hidden":                403,
		"203.0.113.7:":                        403,
		"203.0.113.7:x":                       403,
		"203.0.113.7:65536":                   403,
		"[203.0.113.7]":                       403,
		"[203.0.113.7]:80":                    403,
		"[2001:db8::1":                        403,
		"2001:db8::1]:443":                    403,
		"203.0.113.7:51008, ":                 403,
		"203.0.113.007":                       403,
		"for=203.0.113.7":                     403,
		"203.0.113.7, canary-of-a-client 1.2": 403,
	} {
		req := b.request("GET", "/api/tags", key, "")
		req.Header.Set("X-Forwarded-For", entry)
		if r := b.send(req); r.status != status {
			t.Errorf("%q: %d, want %d: %s", entry, r.status, status, r.body)
		}
	}
	log := b.logs.String()
	if n := strings.Count(log, "sends an X-Forwarded-For entry that is not an IP address"); n != 1 {
		t.Errorf("got %d lines about entries that are not addresses, want 1", n)
	}
	if strings.Contains(log, "canary") {
		t.Error("the log contains text that a client wrote")
	}
}
