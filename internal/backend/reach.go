package backend

import (
	"fmt"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/dial"
)

// Means returns how to reach a server whose entry says r: with its own texts, or with those of the settings.
func Means(r api.Reach, settings dial.Means) dial.Means {
	m := settings
	text := func(into *dial.Text, field, setting, name string) {
		switch field {
		case "", setting:
		case api.ReachNone:
			*into = dial.Text{}
		default:
			*into = dial.Text{PEM: field, Name: name}
		}
	}
	text(&m.CA, r.CA, api.SettingCA, "ca")
	text(&m.Cert, r.ClientCert, api.SettingClientCert, "client_cert")
	text(&m.Key, r.ClientKey, api.SettingClientKey, "client_key")
	switch r.AuthHeader {
	case "", api.SettingAuthHeader:
	case api.ReachNone:
		m.Header, m.Value = "", ""
	default:
		m.Header, m.Value, _ = api.ParseHeader(r.AuthHeader) // it was checked when it was stored
	}
	return m
}

// Missing returns an error if r names a setting that is not set.
func Missing(r api.Reach, settings dial.Means) error {
	for _, f := range []struct {
		field, setting string
		set            bool
	}{
		{r.CA, api.SettingCA, settings.CA != dial.Text{}},
		{r.ClientCert, api.SettingClientCert, settings.Cert != dial.Text{}},
		{r.ClientKey, api.SettingClientKey, settings.Key != dial.Text{}},
		{r.AuthHeader, api.SettingAuthHeader, settings.Header != ""},
	} {
		if f.field == f.setting && !f.set {
			return fmt.Errorf("the setting %s is not set: set it and restart the service, or use the text itself", f.setting)
		}
	}
	return nil
}
