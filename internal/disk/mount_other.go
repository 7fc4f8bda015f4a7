//go:build !linux

package disk

// Unmounted is always "": only Linux says in a file what is to be mounted.
func Unmounted(string) string { return "" }
