package disk

import (
	"errors"
	"os"
	"syscall"
)

// A Fault is why a disk or a network share fails. Every fault may pass without a change of the settings: someone frees space, mounts the
// disk, or ends the process that holds the lock.
type Fault struct {
	Name string // short and constant: full, read-only, quota, failing, away, locked, handles
	Hint string // what happened, then what to do
}

var faults = []struct {
	Fault
	errnos []error
}{
	{Fault{"full", "the disk has no space or no inodes left: free some (df -h and df -i show them)"}, []error{syscall.ENOSPC}},
	{Fault{"quota", "this user's quota on the disk is used up: free space or raise the quota"}, []error{syscall.EDQUOT}},
	{Fault{"read-only", "the file system is mounted read-only: mount it read-write (a failing disk becomes read-only, so check the kernel's log too; under systemd, ReadWritePaths= must contain the directory)"}, []error{syscall.EROFS}},
	{Fault{"failing", "the disk reports errors: check the kernel's log, and make a backup on another disk"}, []error{syscall.EIO}},
	{Fault{"away", "the disk or network share is not available: mount it, or restart its server"}, []error{syscall.ESTALE, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.ENXIO, syscall.ENODEV}},
	{Fault{"locked", "another process holds the lock: wait until it ends, or stop it"}, []error{ErrLocked}},
	{Fault{"handles", "the system or this process has no file handles or memory left: raise LimitNOFILE or stop programs that use many"}, []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM}},
}

// Cause finds the fault that caused an error. ok reports whether there is one.
func Cause(err error) (f Fault, ok bool) {
	if err == nil {
		return Fault{}, false
	}
	if own := errnoOf(err); own != 0 {
		err = errors.Join(err, own)
	}
	for _, known := range faults {
		for _, e := range known.errnos {
			if errors.Is(err, e) {
				return known.Fault, true
			}
		}
	}
	return Fault{}, false
}

// Try returns why no file can be written in a directory, or nil: it writes a small file there and removes it. It finds the cause of a
// failure whose error number is lost.
func Try(dir string) error {
	f, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}
