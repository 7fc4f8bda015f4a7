package clock

import (
	"os"
	"testing"
	"time"
)

// A suspended machine: its running time includes the suspended time, which Go's clock does not.
func TestTheClockCountsSleep(t *testing.T) {
	awake := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	booted := awake.Add(-5 * time.Hour)
	slept := time.Duration(0)
	now := start(func() time.Time { return awake }, func() (time.Duration, bool) { return awake.Sub(booted) + slept, true })
	before := now()
	slept = 2 * time.Hour
	awake = awake.Add(checkEvery)
	if got := now().Sub(before); got != 2*time.Hour+checkEvery {
		t.Errorf("%v passed during 2h of suspension and %v, want %v", got, checkEvery, 2*time.Hour+checkEvery)
	}
	slept -= time.Minute // two clocks are never read at exactly the same time
	awake = awake.Add(checkEvery)
	if got := now().Sub(before); got != 2*time.Hour+2*checkEvery {
		t.Errorf("after that, %v passed, want %v", got, 2*time.Hour+2*checkEvery)
	}
}

// If the system does not report its running time, differences follow Go's clock.
func TestTheClockWithoutTheSystems(t *testing.T) {
	now := start(time.Now, func() (time.Duration, bool) { return 0, false })
	if before := now(); now().Before(before) || time.Since(before) > time.Minute {
		t.Errorf("the clock is at %v", before)
	}
}

func TestStart(t *testing.T) {
	now := Start()
	first := now()
	if off := time.Since(first).Abs(); off > time.Minute {
		t.Errorf("a new clock is off by %v, want at most %v", off, time.Minute)
	}
	if now().Before(first) {
		t.Error("the clock went backwards")
	}
}

// BenchmarkClock measures one reading of the clock: a request takes two or three.
func BenchmarkClock(b *testing.B) {
	now := Start()
	for b.Loop() {
		now()
	}
}

// printRunning makes the test program a child process that prints how long the machine has been running.
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
