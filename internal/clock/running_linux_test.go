package clock

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// In a namespace whose boot was a day earlier, and whose monotonic clock is the usual one, one day more has passed. This shows that the
// clock that includes suspended time is used.
func TestTheClockThatCountsSleepIsRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("time namespaces need root")
	}
	cmd := exec.Command("unshare", "--time", "--fork", "--boottime", "86400", os.Args[0])
	cmd.Env = append(os.Environ(), printRunning+"=1")
	here, ok := running()
	if !ok {
		t.Fatal("the system does not report its running time")
	}
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("cannot create a time namespace: %v", err)
	}
	there, err := time.ParseDuration(string(out))
	if err != nil || (there-here-24*time.Hour).Abs() > time.Minute {
		t.Errorf("%v here and %s there (%v), want a day more", here, out, err)
	}
}
