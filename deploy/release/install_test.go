package main

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// published serves a small release on this machine. Its program is a shell script that prints its version.
func published(t *testing.T) (dir, url string) {
	t.Helper()
	dir = t.TempDir()
	for _, platform := range []string{"linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64"} {
		name := program + "_v1.2.3_" + platform
		archive, err := tarGzip(name, []file{{program, 0o755, []byte("#!/bin/sh\necho " + platform + "\n")}, {"README.md", 0o644, nil}}, time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, name+".tar.gz", archive)
	}
	if err := writeInstaller(options{root: "../..", out: dir}); err != nil {
		t.Fatal(err)
	}
	if err := writeChecksums(dir); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return dir, server.URL
}

func put(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
		t.Fatal(err)
	}
}

// machine is the environment of an installation. PATH has only the named commands, so a test decides which exist.
type machine struct {
	path, target string
	trust        []string // environment in which curl and wget trust the test's certificate
}

const always = "cut grep mkdir mktemp mv rm tar gzip wc cat sh"

func newMachine(t *testing.T, commands string) *machine {
	t.Helper()
	m := &machine{path: t.TempDir(), target: filepath.Join(t.TempDir(), "bin")}
	for name := range strings.FieldsSeq(always + " " + commands) {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, filepath.Join(m.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// is makes it a machine of another system and architecture.
func (m *machine) is(t *testing.T, system, processor string) {
	put(t, m.path, "uname", []byte("#!/bin/sh\ncase $1 in -s) echo "+system+" ;; -m) echo "+processor+" ;; esac\n"))
}

// install lets the shell read the script from standard input, as `curl | sh` does.
func (m *machine) install(t *testing.T, script, url string) (output string, err error) {
	t.Helper()
	shell, err := exec.LookPath("dash")
	if err != nil {
		t.Fatalf("%v: apt-get install -y dash", err)
	}
	cmd := exec.Command(shell)
	cmd.Env = []string{"PATH=" + m.path, "HOME=" + t.TempDir(), "INSTALL_DIR=" + m.target, "BASE_URL=" + url}
	cmd.Env = append(cmd.Env, m.trust...)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) installed(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(m.target)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func script(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "install.sh"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestInstall(t *testing.T) {
	dir, url := published(t)
	for _, c := range []struct{ name, commands, system, processor, want string }{
		{"Linux, curl", "curl sha256sum", "Linux", "x86_64", "linux_amd64"},
		{"Linux, wget", "wget sha256sum", "Linux", "aarch64", "linux_arm64"},
		{"macOS, curl and shasum", "curl shasum perl", "Darwin", "arm64", "darwin_arm64"},
		{"macOS, openssl", "curl openssl", "Darwin", "x86_64", "darwin_amd64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, c.commands)
			m.is(t, c.system, c.processor)
			for range 2 { // the second time over the first installation
				out, err := m.install(t, script(t, dir), url+"/")
				if err != nil || !strings.Contains(out, "Installed "+m.target+"/"+program+": "+c.want) || !strings.Contains(out, "not in your PATH") {
					t.Fatalf("%v, %s", err, out)
				}
				if names := m.installed(t); len(names) != 1 || names[0] != program {
					t.Errorf("the target holds %q, want only the program", names)
				}
			}
			info, err := os.Stat(filepath.Join(m.target, program))
			if err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("%v, %v, want mode 0755", info.Mode(), err)
			}
		})
	}
}

// secured serves the release at /r over TLS, a redirect to it at /to-r, and a redirect to the same files over HTTP at /to-plain.
func secured(t *testing.T, m *machine) (url, text string) {
	t.Helper()
	dir, plain := published(t)
	mux := http.NewServeMux()
	mux.Handle("/r/", http.StripPrefix("/r/", http.FileServer(http.Dir(dir))))
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	for path, to := range map[string]string{
		"/to-r/": server.URL + "/r/", "/to-path/": "/r/", "/to-plain/": plain + "/", "/twice/": "/to-path/", "/round/": "/round/",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Location", server.URL+"/elsewhere/")
			w.Header().Set("Location", to+strings.TrimPrefix(r.URL.Path, path))
			w.WriteHeader(http.StatusFound)
		})
	}
	put(t, m.path, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	ca := filepath.Join(m.path, "ca.pem")
	put(t, m.path, "wgetrc", []byte("ca_certificate = "+ca+"\n"))
	m.trust = []string{"CURL_CA_BUNDLE=" + ca, "WGETRC=" + filepath.Join(m.path, "wgetrc")}
	return server.URL, script(t, dir)
}

// The script follows redirects from HTTPS to HTTPS, and never to plain HTTP, where an attacker could change the archive and its checksum.
func TestInstallFollowsOnlyHTTPS(t *testing.T) {
	for _, tool := range []string{"curl", "wget"} {
		m := newMachine(t, tool+" sha256sum")
		m.is(t, "Linux", "x86_64")
		url, text := secured(t, m)
		for _, path := range []string{"/r", "/to-r", "/to-path", "/twice"} {
			if out, err := m.install(t, text, url+path); err != nil || !strings.Contains(out, "Installed "+m.target) {
				t.Errorf("%s, %s: %v, %s", tool, path, err, out)
			}
		}
		for _, path := range []string{"/to-plain", "/round", "/missing"} {
			if out, err := m.install(t, text, url+path); err == nil || !strings.Contains(out, "SHA256SUMS cannot be downloaded") {
				t.Errorf("%s, %s: %v, %s, want a failure to download", tool, path, err, out)
			}
		}
		m.trust = nil
		if out, err := m.install(t, text, url+"/r"); err == nil || !strings.Contains(out, "SHA256SUMS cannot be downloaded") {
			t.Errorf("%s, a certificate that is not trusted: %v, %s, want an error, %q in it", tool, err, out, "SHA256SUMS cannot be downloaded")
		}
	}
}

// The real machine: uname is not a stub.
func TestInstallHere(t *testing.T) {
	dir, url := published(t)
	m := newMachine(t, "curl sha256sum uname")
	out, err := m.install(t, strings.Replace(script(t, dir), installerURL, "default_url='"+url+"'\n", 1), "")
	if err != nil || !strings.Contains(out, runtime.GOOS+"_"+runtime.GOARCH) {
		t.Errorf("%v, %s", err, out)
	}
}

const linux = program + "_v1.2.3_linux_amd64.tar.gz"

// archived returns an archive for Linux whose program is a shell script.
func archived(t *testing.T, script string) []byte {
	t.Helper()
	archive, err := tarGzip(strings.TrimSuffix(linux, ".tar.gz"), []file{{program, 0o755, []byte("#!/bin/sh\n" + script + "\n")}}, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// If any check fails, the script installs nothing and keeps the existing program.
func TestInstallRefuses(t *testing.T) {
	change := func(name string, edit func(string) string) func(*testing.T, string, *machine) {
		return func(t *testing.T, dir string, _ *machine) {
			content, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, name, []byte(edit(string(content))))
		}
	}
	is := func(system, processor string) func(*testing.T, string, *machine) {
		return func(t *testing.T, _ string, m *machine) { m.is(t, system, processor) }
	}
	for _, c := range []struct {
		name, url, want string
		given           func(t *testing.T, dir string, m *machine)
	}{
		{"a changed byte", "", "SHA256SUMS says", change(linux, func(s string) string { return s[:50] + string(s[50]^1) + s[51:] })},
		{"a cut archive", "", "SHA256SUMS says", change(linux, func(s string) string { return s[:len(s)-9] })},
		{"a complete archive from another source", "", "SHA256SUMS says", func(t *testing.T, dir string, _ *machine) {
			put(t, dir, linux, archived(t, "echo stranger"))
		}},
		{"no line", "", "no archive for linux_amd64", change(checksums, func(s string) string { return strings.ReplaceAll(s, "linux_amd64", "linux_386") })},
		{"two lines", "", "several archives", change(checksums, func(s string) string { return s + strings.ReplaceAll(s, "v1.2.3", "v1.2.4") })},
		{"a short checksum", "", "no archive for", change(checksums, func(s string) string { return strings.ReplaceAll(s, "  "+linux, "") + "abc  " + linux })},
		{"a path in a name", "", "no archive for", change(checksums, func(s string) string { return strings.ReplaceAll(s, "v1.2.3", "../v1.2.3") })},
		{"no archive", "", linux + " cannot be downloaded", func(t *testing.T, dir string, _ *machine) {
			if err := os.Remove(filepath.Join(dir, linux)); err != nil {
				t.Fatal(err)
			}
		}},
		{"no release", "/elsewhere", "SHA256SUMS cannot be downloaded", is("Linux", "x86_64")},
		{"a program that does not run", "", "does not run here", func(t *testing.T, dir string, _ *machine) {
			put(t, dir, linux, archived(t, "exit 1"))
			if err := os.Remove(filepath.Join(dir, checksums)); err != nil {
				t.Fatal(err)
			}
			if err := writeChecksums(dir); err != nil {
				t.Fatal(err)
			}
		}},
		{"another system", "", "no release for FreeBSD", is("FreeBSD", "amd64")},
		{"another processor", "", "no release for the processor riscv64", is("Linux", "riscv64")},
		{"Windows", "", ".zip", is("MINGW64_NT-10.0", "x86_64")},
		{"plain HTTP", "http://release.example", "https://", is("Linux", "x86_64")},
		{"plain HTTP of another host", "http://localhost:80@release.example", "user name", is("Linux", "x86_64")},
		{"no address", "-", "set BASE_URL", is("Linux", "x86_64")},
		{"nothing to check with", "", "sha256sum, shasum or openssl", func(t *testing.T, _ string, m *machine) {
			if err := os.Remove(filepath.Join(m.path, "sha256sum")); err != nil {
				t.Fatal(err)
			}
		}},
		{"nothing to download with", "", "curl is needed to download, or GNU wget", func(t *testing.T, _ string, m *machine) {
			if err := os.Remove(filepath.Join(m.path, "curl")); err != nil {
				t.Fatal(err)
			}
		}},
		{"a wget that may not check certificates", "", "curl is needed to download, or GNU wget", func(t *testing.T, _ string, m *machine) {
			if err := os.Rename(filepath.Join(m.path, "curl"), filepath.Join(m.path, "fetch")); err != nil {
				t.Fatal(err)
			}
			// Like BusyBox's wget: it does not know --version, and downloads.
			put(t, m.path, "wget", []byte("#!/bin/sh\ncase $1 in --version) echo 'BusyBox v1.35.0 multi-call binary.' >&2; exit 1 ;; esac\n"+
				"while [ $# -gt 2 ]; do case $1 in -O) out=$2 ;; esac; shift; done\nfetch -fsS -o \"$out\" \"$2\"\n"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, url := published(t)
			m := newMachine(t, "curl sha256sum")
			m.is(t, "Linux", "x86_64")
			c.given(t, dir, m)
			if err := os.Mkdir(m.target, 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, m.target, program, []byte("the old one"))
			switch {
			case c.url == "-":
				url = ""
			case strings.HasPrefix(c.url, "http"):
				url = c.url
			default:
				url += c.url
			}
			out, err := m.install(t, script(t, dir), url)
			if err == nil || !strings.Contains(out, c.want) {
				t.Errorf("%v, %q, want a failure with %q", err, out, c.want)
			}
			if names := m.installed(t); len(names) != 1 {
				t.Errorf("the target holds %q, want only the program", names)
			}
			if old, err := os.ReadFile(filepath.Join(m.target, program)); err != nil || string(old) != "the old one" {
				t.Errorf("the old program is %q, %v, want %q", old, err, "the old one")
			}
		})
	}
}

// A script that is cut off on its way to the shell does nothing, no matter where.
func TestInstallCutOff(t *testing.T) {
	dir, url := published(t)
	m := newMachine(t, "curl sha256sum uname")
	whole := script(t, dir)
	end := strings.LastIndex(whole, "main ")
	for cut := 0; cut <= end; cut++ {
		if cut%40 != 0 && whole[cut] != '\n' && cut < end-20 {
			continue
		}
		if out, _ := m.install(t, whole[:cut], url); strings.Contains(out, "Downloading") || len(m.installed(t)) > 0 {
			t.Fatalf("cut at byte %d of %d, it does something: %s, want no %q, at most 0", cut, len(whole), out, "Downloading")
		}
	}
	if out, err := m.install(t, whole, url); err != nil {
		t.Errorf("whole: %v, %s", err, out)
	}
}
