package disk

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Unmounted returns the mount point at or above path that is in /etc/fstab but not mounted now, or "". Files written below that mount
// point would be on another disk than intended.
func Unmounted(path string) string {
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil {
		return ""
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	return unmounted(path, string(fstab), string(mounts))
}

func unmounted(path, fstab, mounts string) string {
	planned := column(fstab, 1)
	mounted := column(mounts, 4)
	for dir := filepath.Clean(path); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if slices.Contains(mounted, dir) {
			return ""
		}
		if slices.Contains(planned, dir) {
			return dir
		}
	}
	return ""
}

// column returns a column of each line. Both files write a space in it as \040.
func column(text string, n int) (list []string) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > n && !strings.HasPrefix(fields[0], "#") {
			list = append(list, filepath.Clean(strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[n])))
		}
	}
	return list
}
