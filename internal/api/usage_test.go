package api

import (
	"testing"
	"time"
)

// Days, weeks and months follow each other without a gap in every zone, even where clocks change at midnight, at odd minutes or by half
// an hour, and where a zone has skipped a date.
func TestDaysWithoutAMidnight(t *testing.T) {
	for name, years := range map[string][2]int{
		"Africa/Cairo": {2023, 2027}, "America/Santiago": {2020, 2027}, "Atlantic/Azores": {2020, 2027}, "Asia/Beirut": {2020, 2027}, "America/Havana": {2020, 2027},
		"America/Asuncion": {2015, 2026}, "America/Sao_Paulo": {2010, 2020}, "Australia/Lord_Howe": {2024, 2027}, "America/Scoresbysund": {2020, 2027},
		"America/Toronto": {1925, 1940}, "Pacific/Apia": {2010, 2013}, "Europe/Berlin": {2025, 2027}, "UTC": {2024, 2026}, "+05:30": {2024, 2026}, "-11:45": {2024, 2026},
	} {
		zone, err := ParseZone(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, by := range Times[1:] {
			at := by.Begin(time.Date(years[0], 1, 15, 12, 0, 0, 0, zone))
			for at.Year() < years[1] {
				next := by.Next(at)
				if !next.After(at) {
					t.Fatalf("%s: the %s after %v begins at %v, so a loop over Next never ends", name, by, at, next)
				}
				if by.Begin(at) != at || by.Begin(next.Add(-1)) != at {
					t.Errorf("%s: the %s from %v to %v begins at %v, and its last instant is in the one from %v, want %v, %v", name, by, at, next, by.Begin(at), by.Begin(next.Add(-1)), at, at)
				}
				y, m, d := at.Date()
				if by == ByDay && date(next) != time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC) && !(name == "Pacific/Apia" && d == 29) {
					t.Errorf("%s: the day after %v begins at %v", name, at, next)
				}
				if by == ByWeek && at.Weekday() != time.Monday || by == ByMonth && d != 1 {
					t.Errorf("%s: a %s begins at %v", name, by, at)
				}
				if before := at.Add(-1); !date(before).Before(date(at)) {
					t.Errorf("%s: %v has the same date as %v, but is before it", name, before, at)
				}
				at = next
			}
		}
	}
	zone, err := ParseZone("Atlantic/Azores")
	if err != nil {
		t.Fatal(err)
	}
	// On 29 March 2026 clocks go from midnight to one o'clock, and on 25 October from one o'clock to midnight.
	for day, want := range map[string]string{"2026-03-28": "2026-03-28T00:00:00-01:00", "2026-03-29": "2026-03-29T01:00:00Z", "2026-10-25": "2026-10-25T00:00:00Z", "2026-10-26": "2026-10-26T00:00:00-01:00"} {
		if at, plain, err := ParseTime(day, zone); err != nil || !plain || at.Format(time.RFC3339) != want {
			t.Errorf("%s begins at %v (a day: %v, %v), want %s", day, at, plain, err, want)
		}
	}
}

// date returns the date that the clocks of its zone show at t.
func date(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}
