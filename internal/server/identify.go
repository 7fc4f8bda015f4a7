package server

import (
	"errors"
	"time"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
)

// identify finds the key and whether it may enter the route.
func (s *Server) identify(x *exchange) error {
	if x.route.access == anyone && !x.route.optional || x.route.access == adminsOrHere && s.MetricsOpen && x.fromHere() {
		return nil
	}
	key, err := s.keyOf(x)
	switch {
	case err == nil:
		x.key = key
	case x.route.access == anyone:
		if !errors.Is(err, auth.ErrNoCredential) {
			s.Books.Refuse(x.who(), api.AsError(err).Code)
		}
		return nil // without a good key it answers all the same, only less
	default:
		return err
	}
	switch {
	case x.route.access == anyone:
		return nil
	case x.route.access.admin() && x.key.Role != api.RoleAdmin && x.route.purpose == management:
		// "ollama run" pulls a model that it is not shown: its user must learn here which models there are.
		return api.Errorf(api.CodeForbidden, "this needs an admin key: ask the operator of this service; the models that this key may use are in \"ollama list\" (GET /api/tags)")
	case x.route.access.admin() && x.key.Role != api.RoleAdmin:
		return api.Errorf(api.CodeForbidden, "this needs an admin key: ask the operator of this service")
	}
	if x.key.OldSecretUntil != nil {
		x.Header().Set("Deprecation", "true")
		x.Header().Set("X-Key-Expires", x.key.OldSecretUntil.UTC().Format(time.RFC3339))
	}
	return nil
}

// guessLength is what a text must have to count as a guess where a good key was sent with it: ADMIN_API_KEY is no shorter, and the
// placeholders of clients ("ollama", "none", "sk-no-key-required") are. In bytes.
const guessLength = 24

// keyOf is the key of the request. Texts that are no keys are counted for their address, also those that stand next to a good key.
func (s *Server) keyOf(x *exchange) (*api.Key, error) {
	text, passedOver, err := s.Auth.Credential(x.r.Header, x.pathKey)
	var key *api.Key
	if err == nil {
		key, err = s.Auth.Identify(x.r.Context(), text, x.addr, x.forwarded)
	}
	if errors.Is(err, auth.ErrNoCredential) {
		x.repeats = s.Throttle.Spent(x.addr, "")
		return nil, err
	}
	var wait time.Duration
	over := false
	failed := func(text string) {
		x.repeats = x.repeats || s.Throttle.Spent(x.addr, text)
		if w, o := s.Throttle.Failed(x.addr, text); o {
			wait, over = w, true
		}
	}
	if err != nil && api.AsError(err).Code == api.CodeUnauthorized {
		failed(text)
	}
	for _, text := range passedOver {
		if len(text) >= guessLength {
			failed(text)
		}
	}
	if over {
		return nil, &api.Error{
			Code: api.CodeThrottled, RetryAfter: wait, NoRetry: true, Err: err,
			Message: "too many requests with a bad API key came from your address: check the key, and try again in a minute",
		}
	}
	return key, err
}
