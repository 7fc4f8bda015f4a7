package api

import (
	"strings"
	"testing"
)

func TestOriginAdmits(t *testing.T) {
	for _, c := range []struct{ pattern, admits, not string }{
		{"https://chat.example.net", "https://chat.example.net", "http://chat.example.net https://chat.example.net:8443 https://evil-chat.example.net https://chat.example.net.evil.example https://a.chat.example.net null"},
		{"https://chat.example.net:443", "https://chat.example.net", "https://chat.example.net:80"},
		{"HTTPS://Chat.Example.NET", "https://chat.example.net", "https://example.net"},
		{"http://localhost:*", "http://localhost http://localhost:3000 http://localhost:65535", "https://localhost:3000 http://localhost.evil.example:3000 http://localhost.evil.example http://localhost:3000.evil.example http://localhost:x http://localhost:0 http://a.localhost:3000 http://localhost:3000/ http://localhost:*"},
		{"https://*.example.net", "https://a.example.net https://a.b.example.net", "https://example.net https://evilexample.net https://.example.net https://a.example.net.evil.example https://a.example.net:8443 https://evil.example/.example.net https://u@a.example.net"},
		{"https://*.example.net:*", "https://a.example.net:8443 https://a.example.net", "https://example.net:8443"},
		{"chrome-extension://*", "chrome-extension://abcdef chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn", "moz-extension://abcdef https://abcdef chrome-extension:// chrome-extension://* null"},
		{"moz-extension://*", "moz-extension://0f3c-1a", "chrome-extension://a"},
		{"app://*", "app://obsidian.md", "https://obsidian.md"},
		{"app://obsidian.md", "app://obsidian.md", "app://evil.md"},
		{"tauri://*", "tauri://localhost", "http://tauri.localhost"},
		{"vscode-webview://*", "vscode-webview://0ngn5v5dm1m4", "vscode-file://vscode-app"},
		{"capacitor://localhost", "capacitor://localhost", "ionic://localhost"},
		{"http://[::1]:3000", "http://[::1]:3000", "http://[::1] http://[::2]:3000"},
		{"http://[::1]:*", "http://[::1]:3000 http://[::1]", "http://[::1:3000"},
		{"https://*", "https://a.example", "https://a.example:8443 http://a.example null"},
		{"file://", "file://", "null http://file file://x"},
		{"null", "null", "https://null file:// http://a"},
		{"*", "https://a.example:8443 chrome-extension://a http://localhost file://", "null a https://a/ https://a,b"},
	} {
		o, err := ParseOrigin(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, origin := range strings.Fields(c.admits) {
			if !o.Admits(origin) {
				t.Errorf("%s does not admit %s", c.pattern, origin)
			}
		}
		for _, origin := range append(strings.Fields(c.not), "", "*") {
			if o.Admits(origin) {
				t.Errorf("%s admits %q", c.pattern, origin)
			}
		}
	}
	if (Origin{}).Admits("https://a.example") || (Origin{}).Admits("null") {
		t.Error("the zero Origin admits an origin")
	}
}

func TestParseOriginSaysHowToWriteIt(t *testing.T) {
	for pattern, want := range map[string]string{
		"http://localhost*":             "http://localhost:*",
		"https://example.net*":          "https://example.net:*",
		"https://*example.net":          "https://*.example.net",
		"https://chat.*":                "the first label",
		"https://chat.*.net":            "the first label",
		"https://*.*.net":               "the first label",
		"https://a*.example.net":        "the first label",
		"https://**":                    "the first label",
		"https://chat.example.net/":     "write https://chat.example.net",
		"https://chat.example.net/chat": "has no path",
		"https://u:p@chat.example.net":  "port is a number",
		"https://u@chat.example.net":    "name or an address",
		"chat.example.net":              "a scheme and a host",
		"localhost:3000":                "a scheme and a host",
		"*://localhost":                 "a scheme and a host",
		"http://localhost:":             "port is a number",
		"http://localhost:99999":        "port is a number",
		"http://localhost:3*":           "port is a number",
		"http://localhost:080":          "port is a number",
		"http://localhost*:3000":        "http://localhost:*",
		"http://[::1]*":                 "http://[::1]:*",
		"http://192.168.1.*:3000":       "the first label",
		"https://":                      "name or an address",
		"https://a,b":                   "name or an address",
		"https://*.":                    "name or an address",
	} {
		if o, err := ParseOrigin(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, error %v; want one that contains %q", pattern, o, err, want)
		}
	}
}
