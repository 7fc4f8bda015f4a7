package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const waits = `"msg":"the start waits"`

func TestStartWaitsForThePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	environ := []string{"DATA_DIR=" + t.TempDir(), "PORT=" + port}
	p := launch(t, environ, nil, "serve")
	if line := p.line(waits); !strings.Contains(line, "uses the port") || !strings.Contains(line, port) {
		t.Errorf("the line is %s, want the port and its cause in it", line)
	}
	l.Close()
	p.line(`"msg":"listening".*:` + port + `"`)
	p.stop()

	if l, err = net.Listen("tcp", "127.0.0.1:"+port); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	launch(t, append(environ, "START_WAIT=1s"), nil, "serve").exit(exitFailure, "uses the port", "waited 1s")
	launch(t, append(environ, "START_WAIT=0s"), nil, "serve").exit(exitFailure, "uses the port")
}

// A stop ends the wait without a failure.
func TestStopEndsTheWait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p := launch(t, []string{"DATA_DIR=" + t.TempDir(), "PORT=" + port, "START_WAIT=1h"}, nil, "serve")
	p.line(waits)
	p.stop()
	p.line(`"msg":"stopped during the start"`)
}

func TestStartWaitsForTheAddress(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: make test runs it")
	}
	needRoot(t)
	ns := fmt.Sprintf("oas-wait-%d", os.Getpid())
	must(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { must(t, "ip", "netns", "delete", ns) })
	must(t, "ip", "-n", ns, "link", "set", "lo", "up")
	inside := []string{"ip", "netns", "exec", ns}

	p := launch(t, []string{"DATA_DIR=" + t.TempDir(), "HOST=192.0.2.7"}, inside, "serve")
	if line := p.line(waits); !strings.Contains(line, "does not have the address now") || strings.Contains(line, "stop") {
		t.Errorf("the line is %s, want it to say that the address does not exist, without advice to stop a process", line)
	}
	must(t, "ip", "-n", ns, "address", "add", "192.0.2.7/32", "dev", "lo")
	p.line(`"msg":"listening"`)
	p.stop()

	// An address on an interface that comes up later, and a name that resolves later.
	p = launch(t, []string{"DATA_DIR=" + t.TempDir(), "HOST=fe80::7%oas7"}, inside, "serve")
	p.line(waits + ".*does not have the address now")
	must(t, "ip", "-n", ns, "link", "add", "oas7", "type", "bridge")
	must(t, "ip", "-n", ns, "link", "set", "oas7", "up")
	must(t, "ip", "-n", ns, "address", "add", "fe80::7/64", "dev", "oas7", "nodad")
	p.line(`"msg":"listening"`)
	p.stop()
	launch(t, []string{"DATA_DIR=" + t.TempDir(), "HOST=gateway.invalid", "START_WAIT=1s"}, inside, "serve").
		exit(exitFailure, "HOST does not resolve")
}

func TestStartWaitsForSpace(t *testing.T) {
	dir := tmpfs(t, "8m")
	free := fill(t, dir)
	p := launch(t, []string{"DATA_DIR=" + filepath.Join(dir, "data")}, nil, "serve")
	if line := p.line(waits); !strings.Contains(line, "no space") {
		t.Errorf("the line is %s, want it to say that the disk is full", line)
	}
	free()
	p.line(`"msg":"listening"`)
	p.stop()
	// An existing database needs only room for its log.
	fill(t, dir)
	launch(t, []string{"DATA_DIR=" + filepath.Join(dir, "data"), "START_WAIT=1s"}, nil, "serve").exit(exitFailure, "no space")
}

func TestStartWaitsForAReadOnlyDisk(t *testing.T) {
	dir := tmpfs(t, "32m")
	remount := func(flags uintptr) {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	p := launch(t, []string{"DATA_DIR=" + dir}, nil, "serve")
	p.line(waits + ".*mounted read-only")
	remount(0)
	p.line(`"msg":"listening"`)
	p.stop()
	remount(syscall.MS_RDONLY)
	launch(t, []string{"DATA_DIR=" + dir, "START_WAIT=1s"}, nil, "serve").exit(exitFailure, "mounted read-only")
}

// The previous process holds the lock until it has ended. Only then is its database opened.
func TestStartWaitsForTheProcessBefore(t *testing.T) {
	environ := []string{"DATA_DIR=" + t.TempDir()}
	first := launch(t, environ, nil, "serve")
	first.line(`"msg":"listening"`)
	second := launch(t, environ, nil, "serve")
	second.line(waits + ".*another ollama-api-service already uses DATA_DIR")
	first.stop()
	second.line(`"msg":"listening"`)
	launch(t, append(environ, "START_WAIT=1s"), nil, "serve").exit(exitFailure, "already uses DATA_DIR")
	second.stop()
}

// A disk in /etc/fstab that is mounted later: no second database is created in the empty directory below the mount point.
func TestStartWaitsForTheDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	data, fstab := filepath.Join(dir, "disk", "data"), filepath.Join(dir, "fstab")
	if err := os.MkdirAll(filepath.Dir(data), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fstab, []byte("# disks\ntmpfs "+filepath.Dir(data)+" tmpfs size=32m 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$0" /etc/fstab && exec "$@"`
	p := launch(t, []string{"DATA_DIR=" + data}, []string{"unshare", "--mount", "sh", "-c", script, fstab}, "serve")
	p.line(waits + ".*the disk for " + filepath.Dir(data) + " in /etc/fstab")
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("DATA_DIR was created where no disk is mounted: %v", err)
	}
	must(t, "nsenter", "--mount", "--target", fmt.Sprint(p.Process.Pid), "mount", filepath.Dir(data))
	p.line(`"msg":"listening"`)
	p.stop()
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("DATA_DIR was created outside the disk: %v", err)
	}

	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "absent"), link); err != nil {
		t.Fatal(err)
	}
	p = launch(t, []string{"DATA_DIR=" + link}, nil, "serve")
	p.line(waits + ".*is a link to")
	if err := os.Mkdir(filepath.Join(dir, "absent"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.line(`"msg":"listening"`)
	p.stop()
}

// The files of a certificate appear later, one after the other, as a renewal writes them. A pair that never matches is exit 2.
func TestStartWaitsForTheCertificate(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM, keyPEM := selfSigned(t)
	_, otherPEM := selfSigned(t)
	write := func(path string, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data := t.TempDir()
	environ := []string{"DATA_DIR=" + data, "TLS_CERT=" + cert, "TLS_KEY=" + key}
	p := launch(t, environ, nil, "serve")
	p.line(waits + ".*certificate.*no such file")
	write(cert, certPEM[:len(certPEM)/2])
	write(key, otherPEM)
	p.line(waits + ".*PEM")
	write(cert, certPEM)
	p.line(waits + ".*private key does not match")
	write(key, keyPEM)
	p.line(`"msg":"listening"`)
	p.stop()

	write(key, otherPEM)
	launch(t, append(environ, "START_WAIT=1s"), nil, "serve").exit(exitUsage, "does not match", "waited 1s")
	os.Remove(key)
	launch(t, append(environ, "START_WAIT=1s"), nil, "serve").exit(exitFailure, "no such file")
}

func selfSigned(t *testing.T) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// A failure that waiting cannot fix ends the start immediately, however long START_WAIT is.
func TestNoWaitForWhatDoesNotPass(t *testing.T) {
	damaged, foreign := t.TempDir(), newDesk(t)
	if err := os.WriteFile(filepath.Join(damaged, databaseName), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign.store.Close()
	for _, c := range []struct {
		environ []string
		exit    int
		says    string
	}{
		{[]string{"DATA_DIR=" + damaged}, exitDatabase, "damaged"},
		{[]string{"DATA_DIR=" + foreign.dir, "SECRET_KEY=another secret, which is as long as that"}, exitDatabase, "SECRET_KEY"},
		{[]string{"DATA_DIR=" + t.TempDir(), "HOST=fe80::1"}, exitUsage, "network interface"},
		{[]string{"DATA_DIR=" + t.TempDir(), "START_WAIT=10"}, exitUsage, "START_WAIT"},
	} {
		launch(t, append([]string{"START_WAIT=1h"}, c.environ...), nil, "serve").exit(c.exit, c.says)
	}
}

// The start waits for a Unix socket that another process still uses, or whose directory does not exist yet.
func TestStartWaitsForTheSocket(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "run")
	path := filepath.Join(below, "http.sock")
	p := launch(t, []string{"HOST=" + path, "DATA_DIR=" + filepath.Join(dir, "data"), "START_WAIT=30s"}, nil, "serve")
	p.line(`its directory does not exist`)
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	p.line(`"msg":"listening"`)

	q := launch(t, []string{"HOST=" + path, "DATA_DIR=" + filepath.Join(dir, "other"), "START_WAIT=30s"}, nil, "serve")
	q.line(`another process is listening on it`)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	q.line(`"msg":"listening"`)
}
