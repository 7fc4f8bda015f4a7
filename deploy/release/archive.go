package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// file is a file of an archive.
type file struct {
	name    string // separated by slashes
	mode    fs.FileMode
	content []byte
}

// commonFiles are the files that every archive contains in addition to the program.
func commonFiles(root, share string) (list []file, err error) {
	for _, f := range []struct{ name, path string }{
		{"LICENSE", filepath.Join(root, "LICENSE")},
		{"README.md", filepath.Join(root, "README.md")},
		{".env.example", filepath.Join(root, ".env.example")},
		{"completions/" + program + ".bash", filepath.Join(share, "completion.bash")},
		{"completions/" + program + ".fish", filepath.Join(share, "completion.fish")},
		{"completions/_" + program, filepath.Join(share, "completion.zsh")},
		{"completions/" + program + ".ps1", filepath.Join(share, "completion.powershell")},
		{"man/" + program + ".1", filepath.Join(share, program+".1")},
	} {
		content, err := os.ReadFile(f.path)
		if err != nil {
			return nil, err
		}
		list = append(list, file{f.name, 0o644, content})
	}
	return list, nil
}

// tarGzip returns a compressed tar archive of the files, in a directory dir.
func tarGzip(dir string, files []file, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	compress := gzip.NewWriter(&b)
	w := tar.NewWriter(compress)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: dir + "/" + f.name, Size: int64(len(f.content)),
			Mode: int64(f.mode), ModTime: at, Format: tar.FormatUSTAR,
		})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := compress.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// zipped returns the same as a zip archive, for Windows.
func zipped(dir string, files []file, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: dir + "/" + f.name, Method: zip.Deflate, Modified: at}
		h.SetMode(f.mode)
		part, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := part.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
