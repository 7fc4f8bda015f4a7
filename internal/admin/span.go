package admin

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"ollama-api-service/internal/api"
)

// Span is the time that a list or a sum is about.
type Span struct {
	From string `query:"from" maxLength:"64" doc:"From this time on (RFC 3339), or from the begin of this day of tz" example:"2026-11-01"`
	To   string `query:"to" maxLength:"64" doc:"Up to this time, which is not included (RFC 3339), or up to the end of this day of tz, which is" example:"2026-11-30"`
	Zone string `query:"tz" maxLength:"64" doc:"The zone whose days from, to and group_by mean and in which times are shown: a name like Europe/Berlin, or a distance from UTC like +05:30. Without it, UTC" example:"Europe/Berlin"`
}

// read is what was asked for; zero where no end was given.
func (s *Span) read() (from, to time.Time, zone *time.Location, err error) {
	if zone, err = api.ParseZone(s.Zone); err != nil {
		return from, to, nil, err
	}
	if s.From != "" {
		if from, _, err = api.ParseTime(s.From, zone); err != nil {
			return from, to, zone, api.Errorf(api.CodeBadRequest, "from is neither a day like 2026-11-01 nor a time like 2026-11-01T12:00:00Z")
		}
	}
	if s.To != "" {
		var day bool
		if to, day, err = api.ParseTime(s.To, zone); err != nil {
			return from, to, zone, api.Errorf(api.CodeBadRequest, "to is neither a day like 2026-11-30 nor a time like 2026-11-30T12:00:00Z")
		}
		if day {
			to = api.ByDay.Next(to)
		}
	}
	if !to.IsZero() && !from.Before(to) {
		return from, to, zone, api.Errorf(api.CodeBadRequest, "from must lie before to")
	}
	return from, to, zone, nil
}

// mark is a cursor of a list: where the next page begins, as a text that clients only hand back.
func mark(list string, place ...string) string {
	text, _ := json.Marshal(append([]string{list}, place...)) // texts never fail
	return base64.RawURLEncoding.EncodeToString(text)
}

// unmark reads a cursor of mark with n places. An empty text is the beginning and has none.
func unmark(list, text string, n int) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	var place []string
	plain, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || json.Unmarshal(plain, &place) != nil || len(place) != n+1 || place[0] != list {
		return nil, errCursor
	}
	return place[1:], nil
}

var errCursor = api.Errorf(api.CodeBadRequest, "cursor is not one of this list: take next_cursor of the page before, or leave it out for the first page")
