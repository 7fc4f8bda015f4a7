// Command image writes a container image of the static binary as a tarball for `docker load`, `podman load` and `ctr image
// import`, without a container engine. The image is the one that the Dockerfile describes.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	user    = 65532 // "nonroot", as in the distroless images
	program = "/usr/bin/ollama-api-service"
	dataDir = "/data"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("image: ")
	binary := flag.String("binary", "", "the static binary")
	index := flag.String("index", "", "instead of -binary and -arch: the directory with ARCH/ollama-api-service for each architecture of an OCI image index")
	roots := flag.String("roots", "/etc/ssl/certs/ca-certificates.crt", "certificate authorities, for an Ollama behind https")
	version := flag.String("version", "dev", "version of the binary")
	revision := flag.String("revision", "", "commit it was built from")
	arch := flag.String("arch", "amd64", "architecture of the binary, as Go names it")
	seconds := flag.Int64("time", 0, "date of everything in the image, in Unix seconds")
	out := flag.String("out", "", "file to write")
	flag.Parse()
	at := time.Unix(*seconds, 0).UTC()
	about := labels(*version, *revision, at)
	var err error
	if *index != "" {
		err = writeIndex(*index, *roots, about, at, *out)
	} else {
		err = write(*binary, *roots, about, *arch, at, *out)
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(*out)
}

func labels(version, revision string, at time.Time) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "ollama-api-service",
		"org.opencontainers.image.description": "API keys, limits and statistics in front of Ollama",
		"org.opencontainers.image.licenses":    "MIT",
		"org.opencontainers.image.version":     version,
		"org.opencontainers.image.revision":    revision,
		"org.opencontainers.image.created":     at.Format(time.RFC3339),
	}
}

// write writes an image for `docker load`, in the format that every version of Docker reads.
func write(binary, roots string, labels map[string]string, arch string, at time.Time, out string) error {
	empty := mutate.MediaType(empty.Image, types.DockerManifestSchema2)
	image, err := fill(empty, types.DockerLayer, binary, roots, labels, arch, at)
	if err != nil {
		return err
	}
	tag, err := name.NewTag("ollama-api-service:latest")
	if err != nil {
		return err
	}
	return tarball.WriteToFile(out, tag, image)
}

// fill adds the binary and the system files to an empty image.
func fill(
	image v1.Image, layers types.MediaType, binary, roots string, labels map[string]string, arch string, at time.Time,
) (v1.Image, error) {
	base, err := layer(layers, at, func(w *files) error { return system(w, roots) })
	if err != nil {
		return nil, err
	}
	app, err := layer(layers, at, func(w *files) error { return w.copy(program, binary, 0o755) })
	if err != nil {
		return nil, err
	}
	image, err = mutate.Append(image,
		mutate.Addendum{Layer: base, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "user, certificate authorities, data directory"}},
		mutate.Addendum{Layer: app, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "ollama-api-service"}})
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(image, settings(image, labels, arch, at))
}

// settings returns the image's configuration, which is in the second half of the Dockerfile.
func settings(image v1.Image, labels map[string]string, arch string, at time.Time) *v1.ConfigFile {
	old, err := image.ConfigFile()
	if err != nil {
		log.Fatal(err) // cannot happen: fill has just made this image
	}
	c := old.DeepCopy()
	c.Architecture, c.OS, c.Created = arch, "linux", v1.Time{Time: at}
	c.Config = v1.Config{
		User:         fmt.Sprintf("%d:%d", user, user),
		ExposedPorts: map[string]struct{}{"8000/tcp": {}},
		Env: []string{
			"PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
			"HOST=0.0.0.0", "PORT=8000", "DATA_DIR=" + dataDir,
		},
		Entrypoint: []string{program},
		Cmd:        []string{"serve"},
		Volumes:    map[string]struct{}{dataDir: {}},
		WorkingDir: dataDir,
		Labels:     labels,
		StopSignal: "SIGTERM",
		Healthcheck: &v1.HealthConfig{
			Test:     []string{"CMD", program, "healthcheck"},
			Interval: 30 * time.Second, Timeout: 5 * time.Second, StartPeriod: 10 * time.Second, Retries: 3,
		},
	}
	return c
}

// system returns the files that a static binary needs: users, certificate authorities and a directory to write to.
func system(w *files, roots string) error {
	for _, dir := range []struct {
		path  string
		mode  int64
		owner int
	}{
		{"/etc", 0o755, 0},
		{"/etc/ssl", 0o755, 0},
		{"/etc/ssl/certs", 0o755, 0},
		{"/usr", 0o755, 0},
		{"/usr/bin", 0o755, 0},
		{"/tmp", 0o1777, 0},
		{dataDir, 0o700, user},
	} {
		if err := w.dir(dir.path, dir.mode, dir.owner); err != nil {
			return err
		}
	}
	for _, file := range [][2]string{
		{"/etc/passwd", fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%d:%d:nonroot:%s:/sbin/nologin\n", user, user, dataDir)},
		{"/etc/group", fmt.Sprintf("root:x:0:\nnonroot:x:%d:\n", user)},
	} {
		if err := w.text(file[0], file[1]); err != nil {
			return err
		}
	}
	return w.copy("/etc/ssl/certs/ca-certificates.crt", roots, 0o644)
}

// files is a layer while it is written.
type files struct {
	tar *tar.Writer
	at  time.Time
}

// layer returns the layer that fill writes.
func layer(media types.MediaType, at time.Time, fill func(*files) error) (v1.Layer, error) {
	var b bytes.Buffer
	w := &files{tar.NewWriter(&b), at}
	if err := fill(w); err != nil {
		return nil, err
	}
	if err := w.tar.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(media))
}

func (w *files) dir(name string, mode int64, owner int) error {
	return w.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: path.Clean(name)[1:] + "/", Mode: mode, Uid: owner, Gid: owner, ModTime: w.at,
	})
}

func (w *files) text(name, content string) error { return w.file(name, []byte(content), 0o644) }

func (w *files) copy(name, from string, mode int64) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return w.file(name, content, mode)
}

func (w *files) file(name string, content []byte, mode int64) error {
	err := w.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: path.Clean(name)[1:], Size: int64(len(content)), Mode: mode, ModTime: w.at,
	})
	if err != nil {
		return err
	}
	_, err = w.tar.Write(content)
	return err
}
