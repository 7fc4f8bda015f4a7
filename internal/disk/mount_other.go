//go:build !linux

package disk

// Unmounted returns "": only Linux lists in a file which disks to mount.
func Unmounted(string) string { return "" }
