package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Private checks the modes of the service's own files: the secret and the database. A file that every user can read is an *Error, unless
// its file system does not support modes. A file that its group can use is a warning, because Kubernetes' fsGroup sets the group bits at
// every mount. Files that do not exist are ignored.
func Private(paths ...string) (warnings []string, err error) {
	if runtime.GOOS == "windows" { // has no such mode bits and reports all of them as set
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
			return []string{path + " and the files next to it can be read by every user of this machine, because their file system does not support modes: mount it with umask=077 or dmask=077,fmask=077 and the uid of the service, or put DATA_DIR on another one"}, nil
		case mode&0o007 != 0:
			return nil, errorf("%s can be read by every user of this machine: chmod 600 it, and consider new keys and a new SECRET_KEY in case someone has read it", path)
		case mode&0o070 != 0:
			shared = append(shared, path)
		}
	}
	if len(shared) > 0 {
		warnings = append(warnings, strings.Join(shared, " and ")+" can be used by their group: chmod 600 them, unless Kubernetes' fsGroup set that and only this service runs with the group")
	}
	return warnings, nil
}

// OpenDirectory returns a warning if every user may rename and replace the files in a directory, otherwise "".
func OpenDirectory(path string) string {
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o002 == 0 || info.Mode()&os.ModeSticky != 0 {
		return ""
	}
	return "DATA_DIR " + path + " can be written by every user of this machine, so each can replace the database: chmod 700 it"
}

// modeless reports whether the file system of a directory ignores modes, as vfat and SMB do: a new file does not get the mode that it is
// created with.
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
