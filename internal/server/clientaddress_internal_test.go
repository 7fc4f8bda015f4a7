package server

import (
	"net/netip"
	"testing"

	"ollama-api-service/internal/api"
)

func TestCausesWithoutTheClient(t *testing.T) {
	for _, c := range []struct {
		detail             api.AddressDetail
		client, text, want string
	}{
		{api.AddressFull, "10.0.0.7", "write tcp 10.0.0.1:8000->10.0.0.7:4711: broken pipe", "write tcp 10.0.0.1:8000->10.0.0.7:4711: broken pipe"},
		{api.AddressPrefix, "10.0.0.7", "write tcp 10.0.0.1:8000->10.0.0.7:4711: broken pipe", "write tcp 10.0.0.1:8000->10.0.0.0/24:4711: broken pipe"},
		{api.AddressNone, "10.0.0.7", "write tcp 10.0.0.1:8000->10.0.0.7:4711: broken pipe", "write tcp 10.0.0.1:8000->(client):4711: broken pipe"},
		{api.AddressNone, "2001:db8::7", "read tcp [::1]:8000->[2001:db8::7]:4711: reset", "read tcp [::1]:8000->(client):4711: reset"},
		{api.AddressNone, "2001:db8::7", "refused 2001:db8::7 at 12:30:15, version 0.6.5", "refused (client) at 12:30:15, version 0.6.5"},
		{api.AddressNone, "10.0.0.7", "dial tcp 10.0.0.70:11434: connection refused", "dial tcp 10.0.0.70:11434: connection refused"},
	} {
		s := &Server{Options: Options{Reports: Reports{LogAddress: c.detail}}}
		if got := s.withoutClient(c.text, netip.MustParseAddr(c.client)); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.detail, c.client, got, c.want)
		}
	}
}
