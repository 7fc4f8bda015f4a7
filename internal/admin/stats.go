package admin

import (
	"context"
	"time"

	"ollama-api-service/internal/api"
)

// flushWait bounds how long statistics wait until requests that have just ended are in the store.
const flushWait = time.Second

type limitsLeft struct {
	RateLimit     *int64   `json:"rate_limit" doc:"Requests in any 60 minutes; null is no limit"`
	Remaining     *int64   `json:"remaining"`
	ResetSeconds  int64    `json:"reset_seconds" doc:"Seconds until one more request is admitted; 0 is now"`
	MaxConcurrent *int64   `json:"max_concurrent"`
	Budgets       []budget `json:"budgets" doc:"The key's limits of tokens and GPU time; empty for a key without any"`
	MaxOutput     *int64   `json:"max_tokens_per_request" doc:"The most tokens that one request may ask for; null means no limit for this key"`
}

type budget struct {
	Limit        string  `json:"limit" enum:"tokens_per_hour,tokens_per_day,gpu_seconds_per_day"`
	Allowed      float64 `json:"allowed" doc:"In any 60 minutes or 24 hours"`
	Used         float64 `json:"used" doc:"By requests that have ended"`
	Held         float64 `json:"held" doc:"What running requests may still use"`
	Remaining    float64 `json:"remaining"`
	ResetSeconds int64   `json:"reset_seconds" doc:"Seconds until more is available; 0 while something is left or held"`
}

type ownStats struct {
	KeyPreview string   `json:"key_preview"`
	KeyName    string   `json:"key_name"`
	Role       api.Role `json:"role"`
	api.Statistics
	Limits limitsLeft `json:"limits"`
}

type keyStats struct {
	KeyName string     `json:"key_name"`
	Role    api.Role   `json:"role"`
	Revoked bool       `json:"revoked,omitempty"`
	Limits  limitsLeft `json:"limits"`
	api.Statistics
}

type allStats struct {
	Statistics map[string]keyStats `json:"statistics" doc:"By key preview"`
	Total      api.Statistics      `json:"total"`
	TotalKeys  int                 `json:"total_keys"`
}

type (
	ownStatsOut struct{ Body ownStats }
	allStatsOut struct{ Body allStats }
)

// settle waits until the requests that have ended are in the store, so that a client that asks after its answer finds it counted. If the
// store is busy or unavailable, settle gives up after flushWait, and the figures are slightly out of date.
func (s *Service) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	if err := s.Books.Flush(ctx); err != nil {
		s.Log.Warn("statistics are not up to date", "cause", err.Error())
	}
}

func (s *Service) limitsOf(k *api.Key) limitsLeft {
	state := s.Limits.State(k)
	l := limitsLeft{
		RateLimit: k.RateLimit, ResetSeconds: int64((state.Reset + time.Second - 1) / time.Second),
		MaxConcurrent: k.MaxConcurrent, MaxOutput: k.MaxOutput, Budgets: []budget{},
	}
	if state.Limit >= 0 {
		l.Remaining = &state.Remaining
	}
	for _, b := range s.Limits.Budgets(k) {
		l.Budgets = append(l.Budgets, budget{b.Limit, b.Allowed, b.Used, b.Held, b.Remaining, int64(b.Reset / time.Second)})
	}
	return l
}

func (s *Service) ownStatistics(ctx context.Context, _ *struct{}) (*ownStatsOut, error) {
	s.settle(ctx)
	k := callerOf(ctx).Key
	stats, err := s.Store.Statistics(ctx, k.Preview, time.Now())
	if err != nil {
		return nil, err
	}
	return &ownStatsOut{ownStats{KeyPreview: k.Preview, KeyName: k.Name, Role: k.Role, Statistics: stats, Limits: s.limitsOf(k)}}, nil
}

func (s *Service) allStatistics(ctx context.Context, _ *struct{}) (*allStatsOut, error) {
	s.settle(ctx)
	stats, err := s.Store.AllStatistics(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	keys, err := s.Store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	out := allStats{Statistics: make(map[string]keyStats, len(keys)), Total: stats.Total, TotalKeys: len(keys)}
	for _, k := range append(keys, s.Auth.Statics()...) {
		used, ok := stats.ByKey[k.Preview]
		if k.Static && !ok {
			continue // a key from settings that was never used
		}
		if !ok {
			used.ByModel, used.ByEndpoint, used.ByOutcome = map[string]int64{}, map[string]int64{}, map[string]int64{} // {} and not null
		}
		out.Statistics[k.Preview] = keyStats{KeyName: k.Name, Role: k.Role, Revoked: k.RevokedAt != nil, Limits: s.limitsOf(&k), Statistics: used}
	}
	for preview, used := range stats.ByKey {
		if _, ok := out.Statistics[preview]; !ok {
			// A key whose setting was removed: its rows stay.
			out.Statistics[preview] = keyStats{KeyName: preview, Statistics: used}
		}
	}
	return &allStatsOut{out}, nil
}
