package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Private reports on the modes of files of the service's own: the secret and the database. A file that everybody can read is an *Error,
// unless its file system has no modes; one that its group can use is a warning, because Kubernetes' fsGroup gives it the group's bits
// at every mount. Files that are not there are no fault.
func Private(paths ...string) (warnings []string, err error) {
	if runtime.GOOS == "windows" { // has no such mode bits and reports them all
		return nil, nil
	}
	var shared []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		switch mode := info.Mode().Perm(); {
		case mode&0o007 != 0 && modeless(filepath.Dir(path)):
			return []string{path + " and the files beside it can be read by every user of this machine, because their file system has no modes: mount it with umask=077 or dmask=077,fmask=077 and the uid of the service, or put DATA_DIR on another one"}, nil
		case mode&0o007 != 0:
			return nil, errorf("%s can be read by every user of this machine: chmod 600 it, and think about new keys and a new SECRET_KEY if somebody did", path)
		case mode&0o070 != 0:
			shared = append(shared, path)
		}
	}
	if len(shared) > 0 {
		warnings = append(warnings, strings.Join(shared, " and ")+" can be used by their group: chmod 600 them, unless Kubernetes' fsGroup set that, and only this service runs with the group")
	}
	return warnings, nil
}

// OpenDirectory is a warning where every user may rename and replace the files in a directory, or "".
func OpenDirectory(path string) string {
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o002 == 0 || info.Mode()&os.ModeSticky != 0 {
		return ""
	}
	return "DATA_DIR " + path + " can be written by every user of this machine, so each can replace the database: chmod 700 it"
}

// modeless reports whether the file system of a directory has no modes, as vfat and SMB have none: a new file does not get the mode that
// it is made with.
func modeless(dir string) bool {
	f, err := os.CreateTemp(dir, ".mode-*") // with mode 0600
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	defer f.Close()
	info, err := f.Stat()
	return err == nil && info.Mode().Perm()&0o077 != 0
}
