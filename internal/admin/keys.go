package admin

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

// keyFields are the names that a body of the key operations may have.
var keyFields = func() []string {
	names := []string{"grace_seconds"}
	for _, f := range api.KeyFields {
		if f.Settable() {
			names = append(names, f.Name)
		}
	}
	return names
}()

// newKey is the body that creates a key, and keyPatch the one that changes it.
type (
	newKey   struct{ api.KeyPatch }
	keyPatch struct{ api.KeyPatch }
)

// Schema describes the fields of a new key.
func (newKey) Schema(r huma.Registry) *huma.Schema { return keySchema(r, "NewKey", true) }

// Schema describes the same fields. None of them is required, and they have no texts.
func (keyPatch) Schema(r huma.Registry) *huma.Schema { return keySchema(r, "KeyPatch", false) }

// keySchema returns the schema that huma makes of a struct with the fields that can be set. Bodies are decoded by api.KeyPatch.
func keySchema(r huma.Registry, name string, create bool) *huma.Schema {
	var fields []reflect.StructField
	for i, f := range api.KeyFields {
		if !f.Settable() {
			continue
		}
		t := reflect.TypeOf(f.At(new(api.Key))).Elem()
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		tag := fmt.Sprintf(`json:"%s" required:"%t" nullable:"%t" `, f.Name, create && f.Required, f.Nullable())
		if t == reflect.TypeFor[string]() {
			tag += fmt.Sprintf(`minLength:"%d" maxLength:"%d" `, f.Least, f.Most)
		}
		// Of two tags with the same name, the first one counts.
		fields = append(fields, reflect.StructField{Name: fmt.Sprint("Field", i), Type: t, Tag: reflect.StructTag(tag) + f.Tag()})
	}
	s := huma.SchemaFromType(r, reflect.StructOf(fields))
	for _, field := range s.Properties {
		if field.Nullable {
			field.Enum = nil // null is not a value of an enum
		}
		if !create {
			field.Description, field.Examples = "", nil
		}
	}
	r.Map()[name] = s // under its own name, as huma does for a named struct
	return &huma.Schema{Ref: "#/components/schemas/" + name}
}

// secretKey is a key with its secret. No other answer has the secret.
type secretKey struct {
	APIKey string `json:"api_key" doc:"The key itself: shown once, and not stored" example:"oas_8rT2kLmN0q_…"`
	api.Key
}

type (
	// KeyPath is exported because huma ignores embedded structs with unexported names.
	KeyPath struct {
		Preview string `path:"key_preview" maxLength:"64" doc:"Public name of the key: oas_ and ten characters" example:"oas_8rT2kLmN0q"`
	}
	createIn  struct{ Body newKey }
	secretOut struct{ Body secretKey }
	keyOut    struct{ Body api.Key }
	keysIn    struct {
		Text  string   `query:"q" maxLength:"100" doc:"Part of the name, the preview or the note; upper and lower case are the same" example:"laptop"`
		State []string `query:"state" maxItems:"4" enum:"active,expiring,expired,revoked" doc:"Keys in any of these states, separated by commas: active keys work, expiring keys work and expire within 30 days" example:"[\"active\"]"`
		api.KeyFilter
		Sort   string `query:"sort" enum:"created_at,-created_at,name,-name,role,-role,expires_at,-expires_at" default:"-created_at" doc:"The order; a hyphen in front reverses it. By expires_at, keys without an expiry come last"`
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" doc:"The most keys to return; without it, all"`
		Cursor string `query:"cursor" maxLength:"2048" doc:"next_cursor of the previous page, unchanged; send the same filters and order again"`
	}
	keysOut struct {
		Body struct {
			APIKeys    []api.Key `json:"api_keys"`
			Total      int       `json:"total" doc:"The number of keys on all pages"`
			NextCursor string    `json:"next_cursor,omitempty" doc:"cursor of the next page; absent on the last page"`
		}
	}
	// Forced is exported for the same reason.
	Forced struct {
		Force bool `query:"force" doc:"Make the change even if it locks out the key that makes it; rotate even if the old secret of the previous rotation still works"`
	}
	changeIn struct {
		KeyPath
		Forced
		Body keyPatch
	}
	rotateIn struct {
		KeyPath
		Forced
		Body struct {
			GraceSeconds *int64 `json:"grace_seconds,omitempty" minimum:"0" maximum:"259200" doc:"How many seconds the old secret continues to work; the default is 86400, a day. After a leak, send 0"`
		}
	}
	revokeOut struct {
		Body struct {
			Message string  `json:"message"`
			Key     api.Key `json:"key"`
		}
	}
)

// change returns the audit entry of a change that the caller's key is about to make.
func (s *Service) change(ctx context.Context) api.Change {
	c := callerOf(ctx)
	return api.Change{Actor: c.Key.Preview, From: c.Addr, At: time.Now(), KeepAdmin: !c.StaticAdmin}
}

func (s *Service) createKey(ctx context.Context, in *createIn) (*secretOut, error) {
	by := s.change(ctx)
	k := api.NewKey("", "", nil)
	in.Body.Apply(&k)
	if !in.Body.Has("rate_limit") {
		byRole := callerOf(ctx).DefaultLimits[k.Role]
		k.RateLimit = &byRole
	}
	secret, preview, err := auth.Mint(s.Random)
	if err != nil {
		return nil, err
	}
	k.Preview, k.CreatedAt = preview, by.At
	if err := s.Store.CreateKey(ctx, k, s.Secret.MAC(secret), by); err != nil {
		return nil, err
	}
	s.changed("key created", by, &k)
	return &secretOut{secretKey{secret, k}}, nil
}

func (s *Service) listKeys(ctx context.Context, in *keysIn) (*keysOut, error) {
	q := api.KeyQuery{KeyFilter: in.KeyFilter, Text: in.Text, States: in.State, Sort: in.Sort}
	place, err := unmark("keys"+in.Sort, in.Cursor, 2)
	if err != nil {
		return nil, err
	}
	keys, err := s.Store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	keys = q.Select(keys, time.Now())
	out := &keysOut{}
	out.Body.Total = len(keys)
	if place != nil {
		keys = slices.DeleteFunc(keys, func(k api.Key) bool { return !q.Behind(&k, place[0], place[1]) })
	}
	if in.Limit > 0 && len(keys) > in.Limit {
		keys = keys[:in.Limit]
		last := &keys[in.Limit-1]
		out.Body.NextCursor = mark("keys"+in.Sort, q.Place(last), last.Preview)
	}
	out.Body.APIKeys = append([]api.Key{}, keys...)
	return out, nil
}

func (s *Service) showKey(ctx context.Context, in *KeyPath) (*keyOut, error) {
	k, err := s.Store.Key(ctx, in.Preview)
	if err != nil {
		return nil, err
	}
	return &keyOut{k.Key}, nil
}

func (s *Service) changeKey(ctx context.Context, in *changeIn) (*keyOut, error) {
	by := s.change(ctx)
	by.Force = in.Force
	k, err := s.Store.ChangeKey(ctx, in.Preview, in.Body.KeyPatch, by)
	if err != nil {
		return nil, err
	}
	s.changed("key changed", by, &k)
	return &keyOut{k}, nil
}

func (s *Service) revokeKey(ctx context.Context, in *KeyPath) (*revokeOut, error) {
	by := s.change(ctx)
	k, err := s.Store.RevokeKey(ctx, in.Preview, by)
	if err != nil {
		return nil, err
	}
	s.changed("key revoked", by, &k)
	out := &revokeOut{}
	out.Body.Message, out.Body.Key = fmt.Sprintf("API key %s is revoked", k.Preview), k
	return out, nil
}

func (s *Service) rotateKey(ctx context.Context, in *rotateIn) (*secretOut, error) {
	by := s.change(ctx)
	by.Force = in.Force
	grace := api.DefaultGrace
	if in.Body.GraceSeconds != nil {
		grace = time.Duration(*in.Body.GraceSeconds) * time.Second
	}
	secret, err := auth.Reissue(s.Random, in.Preview)
	if err != nil {
		return nil, err
	}
	k, err := s.Store.RotateKey(ctx, in.Preview, s.Secret.MAC(secret), grace, by)
	if err != nil {
		return nil, err
	}
	s.changed("key rotated", by, &k)
	return &secretOut{secretKey{secret, k}}, nil
}

// changed makes a change take effect at once and logs it.
func (s *Service) changed(what string, by api.Change, k *api.Key) {
	s.Auth.Forget()
	s.Log.Info(what, "actor", by.Actor, "from", s.From(by), "target", k.Preview, "role", string(k.Role))
}
