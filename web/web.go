// Package web holds the documentation pages with all files that they load, and the written half of the OpenAPI document, which
// the server completes from its route table. The pages load nothing from other hosts.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

//go:embed openapi/*.json
var entries embed.FS

//go:embed pages
var pages embed.FS

//go:embed assets
var assets embed.FS

// File is a file that a browser loads. It is kept compressed.
type File struct {
	Type    string // the media type
	Version string // changes with the content
	Gzip    []byte
}

// Plain returns the uncompressed content, for the few clients that do not accept gzip.
func (f *File) Plain() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(f.Gzip))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Compress returns content as a File.
func Compress(mediaType string, content []byte) (*File, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &File{mediaType, version(content), b.Bytes()}, nil
}

func version(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:8])
}

var mediaTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}

// Site has the pages by name ("docs", "redoc"), and the files that they load by file name.
type Site struct {
	Pages, Files map[string]*File
}

// Open reads the site. A page names its files with their version, so that a browser may cache them forever.
func Open() (*Site, error) {
	s := &Site{Pages: map[string]*File{}, Files: map[string]*File{}}
	vendored, err := fs.Glob(assets, "assets/*.gz")
	if err != nil {
		return nil, err
	}
	for _, name := range vendored {
		content, err := assets.ReadFile(name)
		if err != nil {
			return nil, err
		}
		name = strings.TrimSuffix(path.Base(name), ".gz")
		s.Files[name] = &File{mediaTypes[path.Ext(name)], version(content), content}
	}
	return s, s.readPages()
}

// readPages reads our own files; the HTML last, because it carries the versions of the others.
func (s *Site) readPages() error {
	for _, pattern := range []string{"pages/*.js", "pages/*.css", "pages/*.svg", "pages/*.html"} {
		own, err := fs.Glob(pages, pattern)
		if err != nil {
			return err
		}
		for _, file := range own {
			content, err := pages.ReadFile(file)
			if err != nil {
				return err
			}
			name, into := path.Base(file), s.Files
			if page, html := strings.CutSuffix(name, ".html"); html {
				content, name, into = s.versioned(content), page, s.Pages
			}
			if into[name], err = Compress(mediaTypes[path.Ext(file)], content); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// versioned writes "docs/NAME?v=VERSION" for each "docs/NAME" in a page.
func (s *Site) versioned(page []byte) []byte {
	for name, f := range s.Files {
		page = bytes.ReplaceAll(page, []byte(`"docs/`+name+`"`), []byte(`"docs/`+name+"?v="+f.Version+`"`))
	}
	return page
}

// Entries returns the written parts of the OpenAPI document, in the order of their file names.
func Entries() ([][]byte, error) {
	names, err := fs.Glob(entries, "openapi/*.json")
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, len(names))
	for i, name := range names {
		if parts[i], err = entries.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return parts, nil
}
