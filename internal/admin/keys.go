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

func typeOf(v any) reflect.Type { return reflect.TypeOf(v) }

// keyFields are all names that a body of the key operations may hold.
var keyFields = []string{
	"name", "role", "rate_limit", "max_concurrent", "tokens_per_hour", "tokens_per_day", "gpu_seconds_per_day",
	"max_tokens_per_request", "strict", "weight", "class", "models", "allow_cloud", "expires_at", "allowed_ips", "policy", "note", "grace_seconds",
}

type newKey struct {
	Name          string               `json:"name" minLength:"1" maxLength:"100" example:"Production API Key"`
	Role          api.Role             `json:"role" enum:"admin,user" example:"user"`
	RateLimit     optional[int64]      `json:"rate_limit,omitempty" doc:"Requests in any 60 minutes; 0 blocks the key, null is no limit; default by role" example:"500"`
	MaxConcurrent optional[int64]      `json:"max_concurrent,omitempty" doc:"Requests at one time; null is no bound"`
	TokensPerHour optional[int64]      `json:"tokens_per_hour,omitempty" doc:"Tokens in and out in any 60 minutes; 0 blocks the key's inference, null is no limit" example:"200000"`
	TokensPerDay  optional[int64]      `json:"tokens_per_day,omitempty" doc:"Tokens in and out in any 24 hours; 0 blocks the key's inference, null is no limit"`
	GPUPerDay     optional[int64]      `json:"gpu_seconds_per_day,omitempty" doc:"Seconds of the backends' time in any 24 hours; 0 blocks the key's inference, null is no limit"`
	MaxOutput     optional[int64]      `json:"max_tokens_per_request,omitempty" doc:"The longest answer that one request may ask for, in tokens; null is no bound of the key's own"`
	Strict        bool                 `json:"strict,omitempty" doc:"The key's limits matter more than its being served"`
	Weight        optional[float64]    `json:"weight,omitempty" doc:"Its share of busy servers beside other keys: above 0, at most 1000; null is 1" example:"1"`
	Class         optional[api.Class]  `json:"class,omitempty" doc:"interactive, or batch, which takes what interactive keys leave; null is interactive" example:"interactive"`
	Models        optional[[]string]   `json:"models,omitempty" doc:"Patterns like llama3.2, llama3.2:* or *; null is every local model, an empty list none"`
	AllowCloud    bool                 `json:"allow_cloud,omitempty" doc:"Allow models that Ollama runs off-site"`
	ExpiresAt     optional[time.Time]  `json:"expires_at,omitempty"`
	AllowedIPs    []api.Network        `json:"allowed_ips,omitempty" doc:"Addresses and networks the key may be used from"`
	Policy        optional[api.Policy] `json:"policy,omitempty" doc:"Other answers than the service's to what requests of this key may set: pass, drop, refuse, default:N, max:N or set:N by field"`
	Note          string               `json:"note,omitempty" maxLength:"1000"`
}

type keyPatch struct {
	Name          *string                 `json:"name,omitempty" minLength:"1" maxLength:"100"`
	Role          *api.Role               `json:"role,omitempty" enum:"admin,user"`
	RateLimit     optional[int64]         `json:"rate_limit,omitempty"`
	MaxConcurrent optional[int64]         `json:"max_concurrent,omitempty"`
	TokensPerHour optional[int64]         `json:"tokens_per_hour,omitempty"`
	TokensPerDay  optional[int64]         `json:"tokens_per_day,omitempty"`
	GPUPerDay     optional[int64]         `json:"gpu_seconds_per_day,omitempty"`
	MaxOutput     optional[int64]         `json:"max_tokens_per_request,omitempty"`
	Strict        *bool                   `json:"strict,omitempty"`
	Weight        optional[float64]       `json:"weight,omitempty"`
	Class         optional[api.Class]     `json:"class,omitempty"`
	Models        optional[[]string]      `json:"models,omitempty"`
	AllowCloud    *bool                   `json:"allow_cloud,omitempty"`
	ExpiresAt     optional[time.Time]     `json:"expires_at,omitempty"`
	AllowedIPs    optional[[]api.Network] `json:"allowed_ips,omitempty"`
	Policy        optional[api.Policy]    `json:"policy,omitempty"`
	Note          *string                 `json:"note,omitempty" maxLength:"1000"`
}

// secretKey is a key with its secret: the one answer that ever shows it.
type secretKey struct {
	APIKey string `json:"api_key" doc:"The key itself: shown once, kept nowhere" example:"oas_8rT2kLmN0q_…"`
	api.Key
}

type (
	// KeyPath is exported because huma sees embedded parameters only so.
	KeyPath struct {
		Preview string `path:"key_preview" maxLength:"64" doc:"The key's public name" example:"oas_8rT2kLmN0q"`
	}
	createIn  struct{ Body newKey }
	secretOut struct{ Body secretKey }
	keyOut    struct{ Body api.Key }
	keysIn    struct {
		Text   string   `query:"q" maxLength:"100" doc:"Part of the name, the preview or the note, whatever the case" example:"laptop"`
		State  []string `query:"state" maxItems:"4" enum:"active,expiring,expired,revoked" doc:"Keys in any of these states, separated by commas: active works, expiring works and ends within 30 days" example:"[\"active\"]"`
		Role   string   `query:"role" enum:"admin,user" doc:"Keys of this role"`
		Sort   string   `query:"sort" enum:"created_at,-created_at,name,-name,role,-role,expires_at,-expires_at" default:"-created_at" doc:"The order; a hyphen in front turns it around. Keys without an expiry come behind all others by expires_at"`
		Limit  int      `query:"limit" minimum:"1" maximum:"1000" doc:"The most keys to show; without it all"`
		Cursor string   `query:"cursor" maxLength:"2048" doc:"next_cursor of the page before, unchanged; the filters and the order must be the same again"`
	}
	keysOut struct {
		Body struct {
			APIKeys    []api.Key `json:"api_keys"`
			Total      int       `json:"total" doc:"How many keys there are on all pages"`
			NextCursor string    `json:"next_cursor,omitempty" doc:"cursor of the next page; absent on the last"`
		}
	}
	// Forced is exported for the same reason.
	Forced struct {
		Force bool `query:"force" doc:"Make the change although it bars the key that makes it, or a rotation although the old secret of the one before still works"`
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
			GraceSeconds *int64 `json:"grace_seconds,omitempty" minimum:"0" maximum:"259200" doc:"For how long the old secret continues to work; without it 86400, a day. After a leak send 0"`
		}
	}
	revokeOut struct {
		Body struct {
			Message string  `json:"message"`
			Key     api.Key `json:"key"`
		}
	}
)

func (s *Service) keyOperations(a huma.API) {
	tags := []string{"API keys (admin)"}
	operation(a, huma.Operation{OperationID: "create-key", Method: "POST", Path: "/api/keys", Summary: "Create an API key", Tags: tags}, s.createKey)
	operation(a, huma.Operation{OperationID: "list-keys", Method: "GET", Path: "/api/keys", Summary: "List all API keys", Tags: tags}, s.listKeys)
	operation(a, huma.Operation{OperationID: "get-key", Method: "GET", Path: "/api/keys/{key_preview}", Summary: "Show one API key", Tags: tags, Errors: []int{404}}, s.showKey)
	operation(a, huma.Operation{OperationID: "change-key", Method: "PATCH", Path: "/api/keys/{key_preview}", Summary: "Change an API key", Tags: tags, Errors: []int{404, 409}}, s.changeKey)
	operation(a, huma.Operation{OperationID: "revoke-key", Method: "DELETE", Path: "/api/keys/{key_preview}", Summary: "Revoke an API key", Tags: tags, Errors: []int{404, 409}}, s.revokeKey)
	operation(a, huma.Operation{OperationID: "rotate-key", Method: "POST", Path: "/api/keys/{key_preview}/rotate", Summary: "Give an API key a new secret", Tags: tags, Errors: []int{404, 409}}, s.rotateKey)
}

// change is the audit line of what the exchange's key is about to do.
func (s *Service) change(ctx context.Context) api.Change {
	c := callerOf(ctx)
	return api.Change{Actor: c.Key.Preview, From: c.Addr, At: time.Now(), KeepAdmin: !c.StaticAdmin}
}

func (s *Service) createKey(ctx context.Context, in *createIn) (*secretOut, error) {
	by := s.change(ctx)
	n := in.Body
	k := api.Key{
		Name: n.Name, Role: n.Role, MaxConcurrent: n.MaxConcurrent.Value, AllowCloud: n.AllowCloud, ExpiresAt: n.ExpiresAt.Value,
		AllowedIPs: n.AllowedIPs, Note: n.Note, CreatedAt: by.At, TokensPerHour: n.TokensPerHour.Value, TokensPerDay: n.TokensPerDay.Value,
		GPUPerDay: n.GPUPerDay.Value, MaxOutput: n.MaxOutput.Value, Strict: n.Strict, Weight: api.DefaultWeight, Class: api.ClassInteractive,
	}
	api.KeyPatch{Weight: n.Weight.Optional, Class: n.Class.Optional}.Apply(&k)
	if n.RateLimit.Set {
		k.RateLimit = n.RateLimit.Value
	} else {
		byRole := callerOf(ctx).DefaultLimits[n.Role]
		k.RateLimit = &byRole
	}
	if n.Models.Value != nil {
		k.Models = *n.Models.Value
	}
	if n.Policy.Value != nil {
		k.Policy = *n.Policy.Value
	}
	if err := k.Validate(); err != nil {
		return nil, err
	}
	if err := api.CheckExpiry(k.ExpiresAt, by.At); err != nil {
		return nil, err
	}
	secret, preview, err := auth.Mint(s.Random)
	if err != nil {
		return nil, err
	}
	k.Preview = preview
	if err := s.Store.CreateKey(ctx, k, s.Secret.MAC(secret), by); err != nil {
		return nil, err
	}
	s.changed("key created", by, &k)
	return &secretOut{secretKey{secret, k}}, nil
}

func (s *Service) listKeys(ctx context.Context, in *keysIn) (*keysOut, error) {
	q := api.KeyQuery{Text: in.Text, States: in.State, Role: api.Role(in.Role), Sort: in.Sort}
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
	b := in.Body
	patch := api.KeyPatch{
		Name: b.Name, Role: b.Role, RateLimit: b.RateLimit.Optional, MaxConcurrent: b.MaxConcurrent.Optional,
		TokensPerHour: b.TokensPerHour.Optional, TokensPerDay: b.TokensPerDay.Optional, GPUPerDay: b.GPUPerDay.Optional, MaxOutput: b.MaxOutput.Optional, Strict: b.Strict,
		Weight: b.Weight.Optional, Class: b.Class.Optional,
		Models: b.Models.Optional, AllowCloud: b.AllowCloud, ExpiresAt: b.ExpiresAt.Optional, AllowedIPs: b.AllowedIPs.Optional, Policy: b.Policy.Optional, Note: b.Note,
	}
	k, err := s.Store.ChangeKey(ctx, in.Preview, patch, by)
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

// changed lets a change take effect at once and leaves a line of it in the log.
func (s *Service) changed(what string, by api.Change, k *api.Key) {
	s.Auth.Forget()
	s.Log.Info(what, "actor", by.Actor, "from", s.From(by), "target", k.Preview, "role", string(k.Role))
}
