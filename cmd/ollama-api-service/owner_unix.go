//go:build unix

package main

import (
	"os"
	"syscall"
)

// becomeOwner switches from root to the owner of DATA_DIR, so that the service can read the restored files.
func becomeOwner(dir string) {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		_ = syscall.Setgroups(nil)
		_ = syscall.Setgid(int(owner.Gid))
		_ = syscall.Setuid(int(owner.Uid))
	}
}
