package main

import (
	"archive/tar"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// writeIndex writes one image for several architectures from DIR/ARCH/ollama-api-service, as a tarball of an OCI layout.
func writeIndex(dir, roots string, labels map[string]string, at time.Time, out string) error {
	binaries, err := filepath.Glob(filepath.Join(dir, "*", "ollama-api-service"))
	if err != nil || len(binaries) == 0 {
		return &fs.PathError{Op: "find programs in", Path: dir, Err: fs.ErrNotExist}
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, binary := range binaries {
		arch := filepath.Base(filepath.Dir(binary))
		blank := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		image, err := fill(blank, types.OCILayer, binary, roots, labels, arch, at)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	version := labels["org.opencontainers.image.version"]
	named := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{
		"org.opencontainers.image.ref.name": version,                                           // read by skopeo and podman
		"io.containerd.image.name":          "docker.io/library/ollama-api-service:" + version, // read by docker and ctr
	}}})
	work, err := os.MkdirTemp(filepath.Dir(out), "image-index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := layout.Write(work, named); err != nil {
		return err
	}
	return pack(work, at, out)
}

// pack writes the files of dir to a tarball, ordered by name.
func pack(dir string, at time.Time, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := &files{tar.NewWriter(f), at}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return w.copy("/"+filepath.ToSlash(name), path, 0o644)
	})
	if err != nil {
		return err
	}
	if err := w.tar.Close(); err != nil {
		return err
	}
	return f.Close()
}
