package admin

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"ollama-api-service/internal/api"
)

// Span is the period of a list or a sum.
type Span struct {
	From string `query:"from" maxLength:"64" doc:"Start (RFC 3339), or a day of tz from its beginning" example:"2026-11-01"`
	To   string `query:"to" maxLength:"64" doc:"End (RFC 3339), not included, or a day of tz, which is included" example:"2026-11-30"`
	Zone string `query:"tz" maxLength:"64" doc:"The time zone of the days in from, to and group_by, and of the times in the answer: a name like Europe/Berlin, or an offset from UTC like +05:30. The default is UTC" example:"Europe/Berlin"`
}

// read parses the span. An end that was not given is zero.
func (s *Span) read() (from, to time.Time, zone *time.Location, err error) {
	if zone, err = api.ParseZone(s.Zone); err != nil {
		return from, to, nil, err
	}
	if s.From != "" {
		if from, _, err = api.ParseTime(s.From, zone); err != nil {
			return from, to, zone, api.Errorf(api.CodeBadRequest, "from must be a day like 2026-11-01 or a time like 2026-11-01T12:00:00Z")
		}
	}
	if s.To != "" {
		var day bool
		if to, day, err = api.ParseTime(s.To, zone); err != nil {
			return from, to, zone, api.Errorf(api.CodeBadRequest, "to must be a day like 2026-11-30 or a time like 2026-11-30T12:00:00Z")
		}
		if day {
			to = api.ByDay.Next(to)
		}
	}
	if !to.IsZero() && !from.Before(to) {
		return from, to, zone, api.Errorf(api.CodeBadRequest, "from must be before to")
	}
	return from, to, zone, nil
}

// mark makes the cursor of a list: the place where the next page begins, as text that clients return unchanged.
func mark(list string, place ...string) string {
	text, _ := json.Marshal(append([]string{list}, place...)) // texts never fail
	return base64.RawURLEncoding.EncodeToString(text)
}

// unmark reads a cursor of mark with n places. An empty text is the first page and has none.
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

var errCursor = api.Errorf(api.CodeBadRequest, "cursor is not valid for this list: send next_cursor of the previous page, or no cursor for the first page")
