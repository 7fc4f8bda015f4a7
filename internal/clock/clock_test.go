package clock

import (
	"os"
	"testing"
	"time"
)

// A suspended machine: the time that it has run includes the sleep, which the clock of Go does not see.
func TestTheClockCountsSleep(t *testing.T) {
	awake := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	booted := awake.Add(-5 * time.Hour)
	slept := time.Duration(0)
	now := start(func() time.Time { return awake }, func() (time.Duration, bool) { return awake.Sub(booted) + slept, true })
	before := now()
	slept = 2 * time.Hour
	awake = awake.Add(look)
	if got := now().Sub(before); got != 2*time.Hour+look {
		t.Errorf("%v passed in a sleep of 2h and %v", got, look)
	}
	slept -= time.Minute // two clocks are never read at one moment
	awake = awake.Add(look)
	if got := now().Sub(before); got != 2*time.Hour+2*look {
		t.Errorf("after that %v passed", got)
	}
}

// Without the system's word, differences follow Go's clock.
func TestTheClockWithoutTheSystems(t *testing.T) {
	now := start(time.Now, func() (time.Duration, bool) { return 0, false })
	if before := now(); now().Before(before) || time.Since(before) > time.Minute {
		t.Errorf("it is %v", before)
	}
}

func TestStart(t *testing.T) {
	now := Start()
	first := now()
	if off := time.Since(first).Abs(); off > time.Minute {
		t.Errorf("a clock that was just started is off by %v", off)
	}
	if now().Before(first) {
		t.Error("it went back")
	}
}

// BenchmarkClock is what each look costs: a request takes two or three.
func BenchmarkClock(b *testing.B) {
	now := Start()
	for b.Loop() {
		now()
	}
}

// printRunning makes the test program a child that says how long the machine has run.
const printRunning = "CLOCK_TEST_PRINT_RUNNING"

func TestMain(m *testing.M) {
	if os.Getenv(printRunning) != "" {
		since, ok := running()
		_, _ = os.Stdout.WriteString(since.String())
		if !ok {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
