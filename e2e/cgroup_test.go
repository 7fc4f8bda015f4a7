package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// memoryGroup is a memory cgroup with a limit: the system ends a program in it that takes more.
type memoryGroup struct{ dir string }

// newMemoryGroup makes one below that of the tests, by version 1 or 2 of cgroups. scripts/test.sh leaves the test out where there is
// neither; a skip here is for a run by hand.
func newMemoryGroup(t *testing.T, limit int64) *memoryGroup {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip("NOT RUN: this machine has no cgroups: ", err)
	}
	root, set := "/sys/fs/cgroup", "memory.max"
	path := regexp.MustCompile(`(?m)^0::(.*)$`).FindSubmatch(own)
	if v1 := regexp.MustCompile(`(?m)^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(.*)$`).FindSubmatch(own); v1 != nil {
		root, set, path = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", v1
	}
	if path == nil {
		t.Skip("NOT RUN: this process is in no memory cgroup")
	}
	parent := filepath.Join(root, string(path[1]))
	if _, err := os.Stat(parent); err != nil {
		parent = root // in a container, the path is that of the host
	}
	for _, at := range []string{parent, root} { // a group of version 2 that has processes can have none below it with a limit
		g := &memoryGroup{dir: filepath.Join(at, fmt.Sprintf("ollama-api-service-e2e-%d", os.Getpid()))}
		if os.Mkdir(g.dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(g.dir, set), []byte(strconv.FormatInt(limit, 10)), 0o644) == nil {
			t.Cleanup(func() {
				if err := os.Remove(g.dir); err != nil {
					t.Errorf("the cgroup stays: %v", err)
				}
			})
			return g
		}
		os.Remove(g.dir)
	}
	t.Skip("NOT RUN: no memory cgroup can be made below ", parent, ", for which one must be root")
	return nil
}

// command starts a program in the group: it is in it before it takes any memory.
func (g *memoryGroup) command(binary string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), binary}, args...)
}

// killed is how often the system has ended a program of the group for its memory.
func (g *memoryGroup) killed(t *testing.T) int {
	t.Helper()
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		text, err := os.ReadFile(filepath.Join(g.dir, name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
				count, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				return count
			}
		}
	}
	return 0
}
