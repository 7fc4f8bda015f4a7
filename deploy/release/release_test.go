package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// released is the date of both releases.
const released = 1795600000

// workplace is the directory of releases.
var workplace string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if workplace, err = os.MkdirTemp("", "release-"); err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(workplace)
		return m.Run()
	}())
}

// makeReleases makes two releases of one source, in two directories, with two time zones and two umasks.
var makeReleases = sync.OnceValues(func() (made [2]string, err error) {
	source := filepath.Join(workplace, "source")
	copied := exec.Command("sh", "-c", `mkdir "$0" && git ls-files -co --exclude-standard -z | xargs -0 tar -c --ignore-failed-read | tar -xC "$0"`, source)
	copied.Dir = "../.."
	if out, err := copied.CombinedOutput(); err != nil {
		return made, fmt.Errorf("copying the repository: %w\n%s", err, out)
	}
	for i, from := range []struct{ root, mask, zone string }{{"../..", "022", "UTC"}, {source, "077", "Asia/Kathmandu"}} {
		made[i] = filepath.Join(workplace, fmt.Sprint(i))
		build := exec.Command("sh", "-c", `umask "$0" && exec make -C "$1" release VERSION=v1.0.0 REVISION=abc AT="$2" RELEASE="$3" URL=https://example.net/v1.0.0`,
			from.mask, from.root, fmt.Sprint(released), made[i])
		build.Env = append(os.Environ(), "TZ="+from.zone)
		if out, err := build.CombinedOutput(); err != nil {
			return made, fmt.Errorf("make release: %w\n%s", err, out)
		}
	}
	return made, nil
})

func releases(t *testing.T) [2]string {
	t.Helper()
	made, err := makeReleases()
	if err != nil {
		t.Fatal(err)
	}
	return made
}

var platforms = []string{"darwin_amd64", "darwin_arm64", "linux_amd64", "linux_arm64", "windows_amd64", "windows_arm64"}

func archiveName(platform string) string {
	suffix := ".tar.gz"
	if strings.HasPrefix(platform, "windows") {
		suffix = ".zip"
	}
	return program + "_v1.0.0_" + platform + suffix
}

func TestReleaseIsReproducible(t *testing.T) {
	want := []string{checksums, "install.sh", program + "_v1.0.0_image.oci.tar"}
	for _, platform := range platforms {
		want = append(want, archiveName(platform), program+"_v1.0.0_"+platform+".cdx.json")
	}
	slices.Sort(want)
	entries, err := os.ReadDir(releases(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("a release has %q, want %q", names, want)
	}
	for _, name := range want {
		a, err := os.ReadFile(filepath.Join(releases(t)[0], name))
		b, err2 := os.ReadFile(filepath.Join(releases(t)[1], name))
		if err != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs between two releases of one source (%v, %v)", name, err, err2)
		}
	}
}

// The checksums are those that sha256sum computes.
func TestChecksums(t *testing.T) {
	check := exec.Command("sha256sum", "--check", "--strict", checksums)
	check.Dir = releases(t)[0]
	out, err := check.CombinedOutput()
	if lines := strings.Count(string(out), ": OK\n"); err != nil || lines != 2*len(platforms)+2 {
		t.Errorf("%d lines are right, %v: %s, want %v", lines, err, out, 2*len(platforms)+2)
	}
}

// unpacked returns the files of an archive by their path in its only directory.
func unpacked(t *testing.T, platform string) map[string]file {
	t.Helper()
	path := filepath.Join(releases(t)[0], archiveName(platform))
	files := map[string]file{}
	add := func(name string, mode fs.FileMode, at time.Time, r io.Reader) {
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		dir, rest, _ := strings.Cut(name, "/")
		if dir != program+"_v1.0.0_"+platform || at.Unix() != released {
			t.Errorf("%s of %v", name, at)
		}
		files[rest] = file{rest, mode, content}
	}
	if strings.HasSuffix(path, ".zip") {
		r, err := zip.OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, f := range r.File {
			content, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			add(f.Name, f.Mode(), f.Modified, content)
		}
		return files
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d:%d %s, want 0, 0, none", h.Name, h.Uid, h.Gid, h.Uname)
		}
		add(h.Name, h.FileInfo().Mode(), h.ModTime, r)
	}
}

func TestArchives(t *testing.T) {
	for _, platform := range platforms {
		t.Run(platform, func(t *testing.T) {
			system, arch, _ := strings.Cut(platform, "_")
			binary := program
			if system == "windows" {
				binary += ".exe"
			}
			files := unpacked(t, platform)
			want := []string{
				binary, "LICENSE", "README.md", ".env.example", "man/" + program + ".1", "completions/" + program + ".bash",
				"completions/_" + program, "completions/" + program + ".fish", "completions/" + program + ".ps1",
			}
			for _, name := range want {
				mode := fs.FileMode(0o644)
				if name == binary {
					mode = 0o755
				}
				if f, ok := files[name]; !ok || len(f.content) == 0 || f.mode != mode {
					t.Errorf("%s: there %v, %d bytes, mode %v, want %v", name, ok, len(f.content), f.mode, mode)
				}
			}
			if len(files) != len(want) {
				t.Errorf("the archive has %d files, want %d", len(files), len(want))
			}
			info, err := buildinfo.Read(bytes.NewReader(files[binary].content))
			if err != nil {
				t.Fatal(err)
			}
			settings := map[string]string{}
			for _, s := range info.Settings {
				settings[s.Key] = s.Value
			}
			if settings["GOOS"] != system || settings["GOARCH"] != arch || settings["CGO_ENABLED"] != "0" {
				t.Errorf("the program was built for %v, want %v, %v, %q", settings, system, arch, "0")
			}
		})
	}
}

// The archive for this machine contains a program that runs, and Debian's tools open both kinds of archive.
func TestArchiveOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	for _, command := range [][]string{
		{"tar", "-xzf", filepath.Join(releases(t)[0], archiveName(runtime.GOOS+"_"+runtime.GOARCH)), "-C", dir},
		{"unzip", "-q", filepath.Join(releases(t)[0], archiveName("windows_amd64")), "-d", dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v, %s", command[0], err, out)
		}
	}
	out, err := exec.Command(filepath.Join(dir, program+"_v1.0.0_"+runtime.GOOS+"_"+runtime.GOARCH, program), "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), program+" v1.0.0 (") {
		t.Errorf("%v, %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, program+"_v1.0.0_windows_amd64", program+".exe")); err != nil {
		t.Error(err)
	}
}

func TestBillsOfMaterials(t *testing.T) {
	for _, platform := range platforms {
		t.Run(platform, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(releases(t)[0], program+"_v1.0.0_"+platform+".cdx.json"))
			if err != nil {
				t.Fatal(err)
			}
			var bom cdx.BOM
			if err := json.Unmarshal(text, &bom); err != nil {
				t.Fatal(err)
			}
			if bom.BOMFormat != "CycloneDX" || bom.SpecVersion < cdx.SpecVersion1_5 || bom.SerialNumber != "" || bom.Metadata.Component.Version != "v1.0.0" {
				t.Errorf("%s %v of %s, number %q, want %q, at least %v, none, %q", bom.BOMFormat, bom.SpecVersion, bom.Metadata.Component.Version, bom.SerialNumber, "CycloneDX", cdx.SpecVersion1_5, "v1.0.0")
			}
			there := map[string]bool{}
			for _, c := range *bom.Components {
				there[c.Name] = c.Version != "" && strings.HasPrefix(c.PackageURL, "pkg:")
			}
			for _, name := range []string{"std", "modernc.org/sqlite", "github.com/gofrs/flock", "redoc", "swagger-ui-dist"} {
				if !there[name] {
					t.Errorf("%s is missing, or has no version", name)
				}
			}
			windows := strings.HasPrefix(platform, "windows") // cobra uses mousetrap on Windows
			if mousetrap := there["github.com/inconshreveable/mousetrap"]; mousetrap != windows {
				t.Errorf("mousetrap is in it: %v, want %v: an SBOM is that of its own program", mousetrap, windows)
			}
		})
	}
}

func TestImageIndex(t *testing.T) {
	dir := t.TempDir()
	tarball := filepath.Join(releases(t)[0], program+"_v1.0.0_image.oci.tar")
	if out, err := exec.Command("tar", "-xf", tarball, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(outer); err != nil {
		t.Fatal(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 || manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1.0.0" {
		t.Fatalf("%+v, %v, want one index with the name v1.0.0", manifest, err)
	}
	inner, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = inner.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, d := range manifest.Manifests {
		image, err := inner.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, d.Platform.String())
		program := programOf(t, image)
		if !bytes.Equal(program, unpacked(t, d.Platform.OS+"_"+d.Platform.Architecture)["ollama-api-service"].content) {
			t.Errorf("the program for %v is not that of its archive", d.Platform)
		}
		c, err := image.ConfigFile()
		if err != nil || c.Architecture != d.Platform.Architecture || c.Config.User == "" || c.Config.Labels["org.opencontainers.image.revision"] != "abc" {
			t.Errorf("%v: %+v, %v, want %v, a text, %q", d.Platform, c, err, d.Platform.Architecture, "abc")
		}
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(found, want) {
		t.Errorf("the index has %q, want %q", found, want)
	}
}

// programOf returns the program in the last layer of an image.
func programOf(t *testing.T, image v1.Image) []byte {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	content, err := layers[len(layers)-1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	r := tar.NewReader(content)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	program, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// The released script contains the address of the release; nothing else in it differs from the source.
func TestReleasedInstaller(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(releases(t)[0], "install.sh"))
	source, err2 := os.ReadFile("install.sh")
	want := strings.Replace(string(source), installerURL, "default_url='https://example.net/v1.0.0'\n", 1)
	if err != nil || err2 != nil || string(text) != want {
		t.Errorf("install.sh is not the source with its address (%v, %v)", err, err2)
	}
}

// For each tool in docs/deployment.md, the tool verifies its own signature.
func TestSign(t *testing.T) {
	home := t.TempDir()
	t.Setenv("GNUPGHOME", home)
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(dir, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v, %s", name, args, err, out)
		}
	}
	run(home, "gpg", "--batch", "--passphrase", "", "--quick-generate-key", "release@example.net", "ed25519", "sign", "never")
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--kill", "all").Run() })
	run(home, "minisign", "-G", "-W", "-p", "release.pub", "-s", "release.key")
	for _, c := range []struct{ sign, verify string }{
		{"gpg --batch --local-user release@example.net --armor --detach-sign", "gpg --batch --verify SHA256SUMS.asc SHA256SUMS"},
		{"minisign -S -s '" + home + "/release.key' -m", "minisign -V -p '" + home + "/release.pub' -m SHA256SUMS"},
	} {
		dir := t.TempDir()
		put(t, dir, "something", []byte("signed"))
		if err := writeChecksums(dir); err != nil {
			t.Fatal(err)
		}
		if err := sign(dir, c.sign); err != nil {
			t.Fatal(err)
		}
		run(dir, "sh", "-c", c.verify)
		put(t, dir, checksums, []byte("changed\n"))
		if exec.Command("sh", "-c", "cd '"+dir+"' && "+c.verify).Run() == nil {
			t.Errorf("%s takes a changed file for the signed one", c.verify)
		}
	}
}

func TestSignThatSignsNothing(t *testing.T) {
	dir := t.TempDir()
	for command, want := range map[string]string{"true": "wrote no file", "false": "failed", "/absent/tool": "failed"} {
		if err := sign(dir, command); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("SIGN=%s: %v, want %q", command, err, want)
		}
	}
	if err := write(options{version: "v1.0.0-2-gabc-dirty", sign: "true"}); err == nil || !strings.Contains(err.Error(), "commit first") {
		t.Errorf("a dirty version: %v, want an error, %q in it", err, "commit first")
	}
}
