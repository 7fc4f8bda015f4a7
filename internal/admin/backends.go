package admin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/backend"
	"ollama-api-service/internal/dial"
)

// backendFields are all names that a body of the backend operations may hold.
var backendFields = []string{"name", "url", "slots", "total", "weight", "drain", "ca", "client_cert", "client_key", "auth_header"}

type newBackend struct {
	Name   string  `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9._-]+$" doc:"Its name in headers, statistics and logs" example:"gpu2"`
	URL    string  `json:"url" minLength:"1" maxLength:"300" doc:"Its http or https address, without a path" example:"http://gpu2.example.net:11434"`
	Slots  int     `json:"slots,omitempty" minimum:"0" maximum:"10000" doc:"Concurrent requests for each model, its OLLAMA_NUM_PARALLEL; 0 finds the number by observation" example:"4"`
	Total  int     `json:"total,omitempty" minimum:"0" maximum:"10000" doc:"Concurrent requests for all its models; 0 is no limit"`
	Weight float64 `json:"weight,omitempty" minimum:"0" maximum:"100" doc:"How fast it is, compared with a server of weight 1; 0 means 1"`
	Drain  bool    `json:"drain,omitempty" doc:"Add it drained: it gets no requests yet"`

	CA         string `json:"ca,omitempty" maxLength:"32768" doc:"The certificates (PEM) that its HTTPS is checked with. For this field and the next three: the name of the setting, or no field, uses the value of the setting; none uses no value" example:"OLLAMA_CA"`
	ClientCert string `json:"client_cert,omitempty" maxLength:"32768" doc:"A client certificate with its chain (PEM) for this server, or OLLAMA_CLIENT_CERT, or none" example:"OLLAMA_CLIENT_CERT"`
	ClientKey  string `json:"client_key,omitempty" maxLength:"32768" writeOnly:"true" doc:"The private key of client_cert (PEM, without a passphrase), or OLLAMA_CLIENT_KEY, or none; never shown in an answer" example:"OLLAMA_CLIENT_KEY"`
	AuthHeader string `json:"auth_header,omitempty" maxLength:"8192" writeOnly:"true" doc:"A header that is sent to it with each request, or OLLAMA_AUTH_HEADER, or none; never shown in an answer" example:"OLLAMA_AUTH_HEADER"`
}

type backendPatch struct {
	Slots  *int     `json:"slots,omitempty" minimum:"0" maximum:"10000" doc:"Concurrent requests for each model; 0 finds the number by observation" example:"8"`
	Total  *int     `json:"total,omitempty" minimum:"0" maximum:"10000" doc:"Concurrent requests for all its models; 0 is no limit"`
	Weight *float64 `json:"weight,omitempty" minimum:"0" maximum:"100" doc:"How fast it is, compared with a server of weight 1; 0 means 1"`
	Drain  *bool    `json:"drain,omitempty" doc:"true sends it no new requests; running requests continue"`

	CA         *string `json:"ca,omitempty" maxLength:"32768" doc:"As when it is added; an empty text uses the value of the setting" example:"OLLAMA_CA"`
	ClientCert *string `json:"client_cert,omitempty" maxLength:"32768" doc:"As when it is added; an empty text uses the value of the setting" example:"OLLAMA_CLIENT_CERT"`
	ClientKey  *string `json:"client_key,omitempty" maxLength:"32768" writeOnly:"true" doc:"As when it is added; an empty text uses the value of the setting" example:"OLLAMA_CLIENT_KEY"`
	AuthHeader *string `json:"auth_header,omitempty" maxLength:"8192" writeOnly:"true" doc:"As when it is added; an empty text uses the value of the setting" example:"OLLAMA_AUTH_HEADER"`
}

// BackendReport is what admins see of a server.
type BackendReport struct {
	Name      string          `json:"name" example:"gpu2"`
	URL       string          `json:"url" example:"http://gpu2.example.net:11434"`
	Static    bool            `json:"static" doc:"It is named in OLLAMA_BASE_URL: it can be drained here, but is changed and removed only there"`
	Healthy   bool            `json:"healthy"`
	Draining  bool            `json:"draining"`
	Version   string          `json:"version" example:"0.24.0"`
	Slots     int             `json:"slots" doc:"Concurrent requests for each model; 0 means found by observation"`
	Total     int             `json:"total" doc:"Concurrent requests for all its models; 0 is no limit"`
	Weight    float64         `json:"weight" example:"1"`
	Installed *int            `json:"models_installed" doc:"The number of installed models; null if it is not known"`
	Loaded    []residentModel `json:"models_loaded" doc:"Models in its memory" nullable:"false"`
	Checked   *time.Time      `json:"checked_at" doc:"When it was last checked; null means never"`
	Reason    string          `json:"reason,omitempty" doc:"Why it is not healthy"`
	Reach     backendReach    `json:"reach" doc:"What it is reached with: set if it has its own value, the name of the setting whose value it uses, or none. Values are never shown"`
	Warnings  []string        `json:"warnings,omitempty" doc:"Known vulnerabilities of its version, and models whose version differs from that of most servers" nullable:"false"`
}

type backendReach struct {
	CA         string `json:"ca" example:"OLLAMA_CA"`
	ClientCert string `json:"client_cert" example:"none"`
	ClientKey  string `json:"client_key" example:"none"`
	AuthHeader string `json:"auth_header" example:"set"`
}

type residentModel struct {
	Model   string    `json:"model" example:"llama3.2:latest"`
	VRAM    int64     `json:"size_vram" doc:"Bytes"`
	Expires time.Time `json:"expires_at"`
}

type (
	// BackendPath is exported because huma ignores embedded parameters whose type is not.
	BackendPath struct {
		Name string `path:"name" maxLength:"64" doc:"The name of the backend" example:"gpu2"`
	}
	backendOut  struct{ Body BackendReport }
	backendsOut struct {
		Body struct {
			Backends []BackendReport `json:"backends" nullable:"false"`
		}
	}
	addBackendIn    struct{ Body newBackend }
	changeBackendIn struct {
		BackendPath
		Body backendPatch
	}
	removeBackendOut struct {
		Body struct {
			Message string `json:"message"`
		}
	}
)

func (s *Service) listBackends(context.Context, *struct{}) (*backendsOut, error) {
	out := &backendsOut{}
	out.Body.Backends = s.Backends()
	return out, nil
}

func (s *Service) addBackend(ctx context.Context, in *addBackendIn) (*backendOut, error) {
	by, n := s.change(ctx), in.Body
	base, query, err := api.ParseBackendURL(n.URL)
	if err == nil && len(query) > 0 {
		err = fmt.Errorf("must end after the port: slots, total, weight and name are separate fields")
	}
	if err == nil && s.Refuses != nil {
		err = s.Refuses(base)
	}
	if err != nil {
		return nil, api.Errorf(api.CodeBadRequest, "url %s", err)
	}
	declared := api.Backend{
		Name: n.Name, URL: base, Slots: n.Slots, Total: n.Total, Weight: n.Weight, Draining: n.Drain, AddedAt: by.At,
		Reach: api.Reach{CA: n.CA, ClientCert: n.ClientCert, ClientKey: n.ClientKey, AuthHeader: n.AuthHeader},
	}
	if err := backend.Missing(declared.Reach, s.Means); err != nil {
		return nil, api.Errorf(api.CodeBadRequest, "%s", err)
	}
	for _, other := range s.Fleet.All() {
		switch {
		case other.Name == n.Name:
			return nil, api.Errorf(api.CodeConflict, "a backend %s already exists", n.Name)
		case other.URL.Host == base.Host:
			return nil, api.Errorf(api.CodeConflict, "the backend %s already has this address", other.Name)
		}
	}
	if err := s.Store.AddBackend(ctx, declared, by); err != nil {
		return nil, err
	}
	b := backend.Of(declared, s.Means)
	b.Probe(ctx) // before it gets requests, to learn which models it has
	s.Connect(b)
	if !s.Fleet.Add(b) {
		s.Disconnect(b)
		return nil, api.Errorf(api.CodeConflict, "a backend %s already exists", n.Name)
	}
	s.changedBackend("backend added", by, b)
	return &backendOut{s.report(b)}, nil
}

func (s *Service) changeBackend(ctx context.Context, in *changeBackendIn) (*backendOut, error) {
	by, n := s.change(ctx), in.Body
	p := api.BackendPatch{
		Slots: n.Slots, Total: n.Total, Weight: n.Weight, Drain: n.Drain,
		CA: n.CA, ClientCert: n.ClientCert, ClientKey: n.ClientKey, AuthHeader: n.AuthHeader,
	}
	b, err := s.named(in.Name)
	if err != nil {
		return nil, err
	}
	if s.Static[b.Name] {
		if p.Slots != nil || p.Total != nil || p.Weight != nil || p.Reaches() {
			return nil, api.Errorf(api.CodeConflict, "%s is configured in OLLAMA_BASE_URL and other settings: change it there; only drain can be changed here", b.Name)
		}
		if p.Drain != nil && *p.Drain != b.State().Draining {
			if err := s.Store.DrainBackend(ctx, b.Name, *p.Drain, by); err != nil {
				return nil, err
			}
			s.Fleet.Drain(b, *p.Drain)
			s.changedBackend("backend changed", by, b)
		}
		return &backendOut{s.report(b)}, nil
	}
	var asked api.Backend
	p.Apply(&asked)
	if err := backend.Missing(asked.Reach, s.Means); err != nil {
		return nil, api.Errorf(api.CodeBadRequest, "%s", err)
	}
	declared, err := s.Store.ChangeBackend(ctx, b.Name, p, by)
	if err != nil {
		return nil, err
	}
	if p.Reaches() {
		b.Use(declared.Reach, s.Means)
		s.Renew(b)
		s.Fleet.Probe(ctx, b)
	}
	s.Fleet.Drain(b, declared.Draining)
	s.Fleet.Bound(b, backend.Bounds{Slots: declared.Slots, Total: declared.Total, Weight: declared.Weight})
	s.changedBackend("backend changed", by, b)
	return &backendOut{s.report(b)}, nil
}

func (s *Service) removeBackend(ctx context.Context, in *BackendPath) (*removeBackendOut, error) {
	by := s.change(ctx)
	b, err := s.named(in.Name)
	if err != nil {
		return nil, err
	}
	if s.Static[b.Name] {
		return nil, api.Errorf(api.CodeConflict, "%s is named in the setting OLLAMA_BASE_URL: remove it there, or drain it here", b.Name)
	}
	if err := s.Store.RemoveBackend(ctx, b.Name, by); err != nil {
		return nil, err
	}
	s.Fleet.Remove(b)
	s.Disconnect(b)
	s.changedBackend("backend removed", by, b)
	out := &removeBackendOut{}
	out.Body.Message = fmt.Sprintf("the backend %s is removed; its running requests continue to their end", b.Name)
	return out, nil
}

func (s *Service) named(name string) (*backend.Backend, error) {
	if b := s.Fleet.Named(name); b != nil {
		return b, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no backend with this name: GET /api/admin/backends lists them")
}

func (s *Service) changedBackend(what string, by api.Change, b *backend.Backend) {
	s.Log.Info(what, "actor", by.Actor, "from", s.From(by), "backend", b.Name, "url", b.URL.String())
}

// reach is what b is reached with, without the values.
func (s *Service) reach(b *backend.Backend) backendReach {
	r := b.Reach().Shown()
	say := func(field, setting string, set bool) string {
		switch {
		case field != "" && field != setting:
			return field
		case set:
			return setting
		}
		return api.ReachNone
	}
	m := s.Means
	return backendReach{
		CA:         say(r.CA, api.SettingCA, m.CA != dial.Text{}),
		ClientCert: say(r.ClientCert, api.SettingClientCert, m.Cert != dial.Text{}),
		ClientKey:  say(r.ClientKey, api.SettingClientKey, m.Key != dial.Text{}),
		AuthHeader: say(r.AuthHeader, api.SettingAuthHeader, m.Header != ""),
	}
}

// Backends lists the servers as admins see them.
func (s *Service) Backends() []BackendReport {
	list := []BackendReport{}
	for _, b := range s.Fleet.All() {
		list = append(list, s.report(b))
	}
	return list
}

// report describes b.
func (s *Service) report(b *backend.Backend) BackendReport {
	state, bounds := b.State(), b.Bounds()
	r := BackendReport{
		Name: b.Name, URL: b.URL.String(), Static: s.Static[b.Name], Healthy: state.Healthy, Draining: state.Draining, Version: state.Version,
		Slots: bounds.Slots, Total: bounds.Total, Weight: cmp.Or(bounds.Weight, 1), Loaded: []residentModel{},
		Reason: state.Reason, Warnings: state.Vulnerabilities(), Reach: s.reach(b),
	}
	if state.Installed != nil {
		n := len(state.Installed)
		r.Installed = &n
	}
	for name, m := range state.Loaded {
		r.Loaded = append(r.Loaded, residentModel{name, m.VRAM, m.Expires.UTC()})
	}
	slices.SortFunc(r.Loaded, func(a, b residentModel) int { return strings.Compare(a.Model, b.Model) })
	if !state.Checked.IsZero() {
		at := state.Checked.UTC()
		r.Checked = &at
	}
	for _, name := range s.Fleet.DivergentNames() {
		if slices.Contains(s.Fleet.Divergent(name), b) {
			r.Warnings = append(r.Warnings, "its "+name+" differs from that of most servers: it gets no requests for that model until they are the same; pull the model again")
		}
	}
	return r
}
