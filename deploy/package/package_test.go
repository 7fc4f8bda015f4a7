package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// stage is the directory that `make packaged` has built, once for all tests.
var stage string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "package-")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(dir)
		stage = filepath.Join(dir, "stage")
		build := exec.Command("make", "-C", "../..", "packaged", "VERSION=v1.0.0", "STAGE="+stage)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "make packaged: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

var at = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// packages builds the packages of two versions once. The settings file of the second version has one more line.
func packages(t *testing.T, format string) (first, second string) {
	t.Helper()
	if made, ok := written[format]; ok {
		return made[0], made[1]
	}
	dir := filepath.Dir(stage)
	later := filepath.Join(dir, "later")
	if _, err := os.Stat(later); err != nil {
		if err := os.CopyFS(later, os.DirFS(stage)); err != nil {
			t.Fatal(err)
		}
		settings, err := os.OpenFile(filepath.Join(later, "ollama-api-service.env"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(settings, "# A line of the second version.")
		settings.Close()
	}
	first, err := write(format, "1.0.0", runtime.GOARCH, stage, at, dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err = write(format, "1.1.0", runtime.GOARCH, later, at, dir); err != nil {
		t.Fatal(err)
	}
	written[format] = [2]string{first, second}
	return first, second
}

var written = map[string][2]string{}

// system runs a script in a copy of this machine: by chroot, or with systemd as its first process ("boot").
func system(t *testing.T, how, script string, files ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test must run as root, because it installs packages in a copy of the machine")
	}
	prepare, err := os.ReadFile("testdata/system.sh")
	if err != nil {
		t.Fatal(err)
	}
	enter, err := os.ReadFile(filepath.Join("testdata", how+".sh"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "--cgroup", "bash", "-c", string(prepare) + string(enter), "system", t.TempDir()}, files...)...)
	cmd.Stdin = strings.NewReader(never + script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, secretKey.ReplaceAll(out, []byte("oas_…")))
	}
	return string(out)
}

// secretKey matches a key, which must not be in the output of a test.
var secretKey = regexp.MustCompile(`oas_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}`)

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return string(out)
}

// contents lists the files of both packages, with mode and owner if they matter.
var contents = []string{
	"-rwxr-xr-x root root /usr/bin/ollama-api-service",
	"-rw-r--r-- root root /usr/lib/systemd/system/ollama-api-service.service",
	"-rw-r--r-- root root /usr/lib/systemd/system/ollama-api-service.socket",
	"-rw-r----- root ollama-api-service /etc/ollama-api-service/ollama-api-service.env",
	"drwxr-x--- root ollama-api-service /etc/ollama-api-service",
	"drwx------ ollama-api-service ollama-api-service /var/lib/ollama-api-service",
	"-rw-r--r-- root root /usr/share/ollama-api-service/grafana/ollama-api-service.json",
	"-rw-r--r-- root root /usr/share/ollama-api-service/prometheus/ollama-api-service.rules.yml",
	"-rw-r--r-- root root /usr/share/man/man1/ollama-api-service.1.gz",
	"-rw-r--r-- root root /usr/share/bash-completion/completions/ollama-api-service",
	"-rw-r--r-- root root /usr/share/fish/vendor_completions.d/ollama-api-service.fish",
}

func holds(t *testing.T, listing string, more ...string) {
	t.Helper()
	lines := map[string]bool{}
	for line := range strings.Lines(listing) {
		lines[strings.TrimSpace(line)] = true
	}
	for _, want := range append(contents, more...) {
		if !lines[want] {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
}

func TestDebContents(t *testing.T) {
	deb, _ := packages(t, "deb")
	var listing strings.Builder
	for line := range strings.Lines(output(t, "dpkg-deb", "--contents", deb)) {
		f := strings.Fields(line)
		owner, group, _ := strings.Cut(f[1], "/")
		fmt.Fprintln(&listing, f[0], owner, group, strings.TrimSuffix(strings.TrimPrefix(f[5], "."), "/"))
	}
	holds(t, listing.String(), "-rw-r--r-- root root /usr/share/zsh/vendor-completions/_ollama-api-service", "-rw-r--r-- root root /usr/share/doc/ollama-api-service/copyright")
	if got := output(t, "dpkg-deb", "--info", deb, "conffiles"); strings.TrimSpace(got) != "/etc/ollama-api-service/ollama-api-service.env" {
		t.Errorf("conffiles %q, want %q", got, "/etc/ollama-api-service/ollama-api-service.env")
	}
	for field, want := range map[string]string{"Package": "ollama-api-service", "Version": "1.0.0", "Architecture": runtime.GOARCH, "Depends": "passwd"} {
		if got := strings.TrimSpace(output(t, "dpkg-deb", "--field", deb, field)); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
}

func TestRPMContents(t *testing.T) {
	rpm, _ := packages(t, "rpm")
	holds(t, output(t, "rpm", "--query", "--package", "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]", rpm),
		"-rw-r--r-- root root /usr/share/zsh/site-functions/_ollama-api-service", "-rw-r--r-- root root /usr/share/licenses/ollama-api-service/LICENSE")
	if got := output(t, "rpm", "-qp", "--configfiles", rpm); strings.TrimSpace(got) != "/etc/ollama-api-service/ollama-api-service.env" {
		t.Errorf("configuration files %q, want %q", got, "/etc/ollama-api-service/ollama-api-service.env")
	}
	scripts := output(t, "rpm", "-qp", "--scripts", rpm)
	for _, kind := range []string{"preinstall", "postinstall", "preuninstall", "postuninstall"} {
		if !strings.Contains(scripts, kind+" scriptlet") {
			t.Errorf("no %s script in\n%s", kind, scripts)
		}
	}
	if out, err := exec.Command("rpm", "--checksig", "--nosignature", rpm).CombinedOutput(); err != nil {
		t.Errorf("digests: %v\n%s", err, out)
	}
}

// One source makes the same package, byte for byte.
func TestPackagesAreReproducible(t *testing.T) {
	for _, format := range []string{"deb", "rpm"} {
		first, _ := packages(t, format)
		again, err := write(format, "1.0.0", runtime.GOARCH, stage, at, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		a, err := os.ReadFile(first)
		b, err2 := os.ReadFile(again)
		if err != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("two %s of one source differ", format)
		}
	}
}

func TestPackageVersion(t *testing.T) {
	for describe, want := range map[string]string{
		"v1.2.0":                  "1.2.0",
		"1.2.0":                   "1.2.0",
		"v1.2.0-dirty":            "1.2.0+dirty",
		"v1.2.0-3-gabc1234":       "1.2.0+3.gabc1234",
		"v1.2.0-3-gabc1234-dirty": "1.2.0+3.gabc1234.dirty",
		"v1.2.0-rc.1":             "1.2.0~rc.1",
		"v1.2.0-rc.1-2-gabc1234":  "1.2.0~rc.1+2.gabc1234",
		"e602307-dirty":           "0.0.0~e602307.dirty",
		"dev":                     "0.0.0~dev",
	} {
		if got := packageVersion(describe); got != want {
			t.Errorf("%s is %s, want %s", describe, got, want)
		}
	}
	ordered := []string{"0.0.0~dev", "1.2.0~rc.1", "1.2.0~rc.1+2.gabc1234", "1.2.0", "1.2.0+3.gabc1234", "1.3.0"}
	for i := range ordered[1:] {
		if err := exec.Command("dpkg", "--compare-versions", ordered[i], "lt", ordered[i+1]).Run(); err != nil {
			t.Errorf("dpkg: %s is not before %s", ordered[i], ordered[i+1])
		}
	}
}

// never fails the script when the command succeeds; of "! command" bash takes no notice.
const never = `
never() { if "$@"; then echo "this must fail: $*"; exit 1; fi; }
`

// common checks an installation, no matter which package manager made it.
const common = `
env=/etc/ollama-api-service/ollama-api-service.env
data=/var/lib/ollama-api-service
[ "$(stat -c '%a %U %G' $env)" = '640 root ollama-api-service' ]
[ "$(stat -c '%a %U %G' $data)" = '700 ollama-api-service ollama-api-service' ]
[ "$(getent passwd ollama-api-service | cut -d: -f6-)" = "$data:/usr/sbin/nologin" ]
[ -z "$(systemd-analyze verify /usr/lib/systemd/system/ollama-api-service.service 2>&1)" ]
man --where ollama-api-service
test "$(ollama-api-service version | cut -d' ' -f2)" = v1.0.0
# The installed program knows where its settings are, and they are right.
{ ollama-api-service keys list 2>&1 || true; } | grep -F "there is no database $data/ollama-api-service.db"
`

func TestInASystemDebIsInstalledUpgradedAndRemoved(t *testing.T) {
	first, second := packages(t, "deb")
	out := system(t, "chroot", `
dpkg -i /root/`+filepath.Base(first)+common+`
# An unchanged settings file is replaced; a changed one stays, and the new one is next to it.
dpkg -i /root/`+filepath.Base(second)+`
grep -F 'second version' $env
dpkg -i /root/`+filepath.Base(first)+`
echo PORT=9000 >>$env
echo precious >$data/ollama-api-service.db
dpkg --force-confdef -i /root/`+filepath.Base(second)+` </dev/null
grep -Fx PORT=9000 $env
never grep -F 'second version' $env
grep -F 'second version' $env.dpkg-dist
[ "$(stat -c '%a %U %G' $env)" = '640 root ollama-api-service' ]
dpkg -r ollama-api-service
grep -Fx PORT=9000 $env
[ ! -e /usr/bin/ollama-api-service ]
dpkg -P ollama-api-service
[ ! -e $env ]
grep -Fx precious $data/ollama-api-service.db
`, first, second)
	for _, words := range []string{"is installed and does not run yet", "Kept: /var/lib/ollama-api-service"} {
		if !strings.Contains(out, words) {
			t.Errorf("no package printed %q:\n%s", words, out)
		}
	}
}

func TestInASystemRPMIsInstalledUpgradedAndRemoved(t *testing.T) {
	first, second := packages(t, "rpm")
	// On this machine another package manager has installed its dependencies.
	out := system(t, "chroot", `
rpm -i --nodeps /root/`+filepath.Base(first)+common+`
rpm -U --nodeps /root/`+filepath.Base(second)+`
grep -F 'second version' $env
rpm -e ollama-api-service
rpm -i --nodeps /root/`+filepath.Base(first)+`
echo PORT=9000 >>$env
echo precious >$data/ollama-api-service.db
rpm -U --nodeps /root/`+filepath.Base(second)+`
grep -Fx PORT=9000 $env
never grep -F 'second version' $env
grep -F 'second version' $env.rpmnew
[ "$(stat -c '%a %U %G' $env)" = '640 root ollama-api-service' ]
rpm -e ollama-api-service
grep -Fx PORT=9000 $env.rpmsave
[ ! -e /usr/bin/ollama-api-service ]
grep -Fx precious $data/ollama-api-service.db
`, first, second)
	if strings.Count(out, "is installed and does not run yet") != 2 {
		t.Errorf("want the next steps from the two installations and from no upgrade, got:\n%s", out)
	}
}

// systemd passes a secret to the service as a credential, without a setting and without a file that the service's user can read.
func TestInASystemCredentialsReachTheService(t *testing.T) {
	deb, _ := packages(t, "deb")
	system(t, "boot", `
set +x
umask 077
printf '%s\n' 0123456789abcdef0123456789abcdef-admin >/root/admin-key
umask 022
mkdir -p /etc/systemd/system/ollama-api-service.service.d
printf '[Service]\nLoadCredential=ADMIN_API_KEY:/root/admin-key\n' >/etc/systemd/system/ollama-api-service.service.d/credentials.conf
systemctl daemon-reload
systemctl start ollama-api-service
for i in $(seq 100); do ollama-api-service healthcheck && break; sleep 0.1; done
curl -fsS -o /dev/null http://127.0.0.1:8000/api/keys -H "Authorization: Bearer $(cat /root/admin-key)"
[ ! -e /var/lib/ollama-api-service/first-admin.key ]
if journalctl --unit=ollama-api-service --output=cat | grep -F "$(cat /root/admin-key)"; then echo 'the key is in the journal'; exit 1; fi
`, deb)
}

// The unit under a real systemd: it starts within its restrictions and keeps the first key out of the journal, root backs it up and
// restores it, and it stops in the orderly way.
func TestInASystemTheUnitRuns(t *testing.T) {
	deb, _ := packages(t, "deb")
	system(t, "boot", `
data=/var/lib/ollama-api-service
show() { systemctl show --property="$1" --value ollama-api-service; }
until_true() { for i in $(seq 300); do if "$@"; then return; fi; sleep 0.1; done; echo "in vain: $*"; return 1; }
# It is up when it says so, and says where.
systemctl start ollama-api-service
ollama-api-service healthcheck
[ "$(show StatusText)" = 'serving at 127.0.0.1:8000' ]
[ "$(show WatchdogUSec)" = 2min ]
[[ " $(show RequiresMountsFor) " = *" $data "* ]]
status=/proc/$(systemctl show --property=MainPID --value ollama-api-service)/status
grep -E '^NoNewPrivs:\s1' $status
grep -E '^CapBnd:\s0+$' $status
grep -E '^Seccomp:\s2' $status
grep -E "^Uid:\s$(id -u ollama-api-service)\s" $status
set +x
key=$(cat $data/first-admin.key)
rm $data/first-admin.key
journalctl --unit=ollama-api-service --output=cat >/root/journal
if grep -F "$key" /root/journal; then echo 'the key is in the journal'; exit 1; fi
grep -F first-admin.key /root/journal
keys() { curl -fsS -o /dev/null http://127.0.0.1:8000/api/keys -H "Authorization: Bearer $key"; }
set -x
keys

# Backed up and restored by root, for the user that the service runs as.
ollama-api-service backup /root/b.tar
ollama-api-service keys create --name newer
never ollama-api-service restore --force /root/b.tar
systemctl stop ollama-api-service
ollama-api-service restore --force /root/b.tar
[ -z "$(find $data ! -user ollama-api-service)" ]
systemctl start ollama-api-service
for i in $(seq 100); do ollama-api-service healthcheck && break; sleep 0.1; done
keys
ollama-api-service keys list >/root/keys
never grep newer /root/keys

# A reload takes settings over, a mistake in them fails and changes nothing, and neither ends the service.
before=$(show MainPID)
echo LOG_LEVEL=debug >>/etc/ollama-api-service/ollama-api-service.env
systemctl reload ollama-api-service
said() { journalctl --unit=ollama-api-service --output=cat | grep -F "$1"; }
until_true said '"msg":"the settings were reloaded","changed":["LOG_LEVEL"]'
sed -i 's/^LOG_LEVEL=.*/LOG_LEVEL=loud/' /etc/ollama-api-service/ollama-api-service.env
never systemctl reload ollama-api-service
sed -i '/^LOG_LEVEL=/d' /etc/ollama-api-service/ollama-api-service.env
until_true systemctl is-active ollama-api-service
[ "$(show MainPID)" = "$before" ]

# What kills it, or makes it hang, has it started again.
restarted() { [ "$(show NRestarts)" = "$1" ] && systemctl is-active ollama-api-service; }
kill -KILL "$(show MainPID)"
until_true restarted 1
mkdir /run/systemd/system/ollama-api-service.service.d
printf '[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n' >/run/systemd/system/ollama-api-service.service.d/quick.conf
systemctl daemon-reload
systemctl restart ollama-api-service
before=$(show NRestarts)
sleep 7 # systemd does not restart a service that works
[ "$(show NRestarts)" = "$before" ]
kill -STOP "$(show MainPID)"
until_true restarted $((before + 1))
rm -r /run/systemd/system/ollama-api-service.service.d
systemctl daemon-reload

# With systemd's socket, a restart refuses no connection.
systemctl stop ollama-api-service
systemctl start ollama-api-service.socket
systemctl start ollama-api-service
(
  set +x
  while [ ! -e /root/enough ]; do
    curl -fsS -o /dev/null http://127.0.0.1:8000/healthz && echo >>/root/answered || echo >>/root/refused
  done
) &
for i in 1 2 3; do systemctl restart ollama-api-service; sleep 0.5; done
touch /root/enough
wait $!
[ ! -e /root/refused ]
[ "$(wc -l </root/answered)" -gt 5 ]
systemctl stop ollama-api-service.socket ollama-api-service
systemctl start ollama-api-service

# An upgrade restarts it.
before=$(systemctl show --property=MainPID --value ollama-api-service)
dpkg -i /root/`+filepath.Base(deb)+`
[ "$(systemctl show --property=MainPID --value ollama-api-service)" != "$before" ]
systemctl is-active ollama-api-service
# One with settings that the new version refuses is installed all the same, and says that the service is down.
echo PROT=9000 >>/etc/ollama-api-service/ollama-api-service.env
dpkg -i /root/`+filepath.Base(deb)+` 2>&1 | grep -F 'did not start'
sed -i '/^PROT=/d' /etc/ollama-api-service/ollama-api-service.env
systemctl start ollama-api-service
systemctl stop ollama-api-service
[ "$(systemctl show --property=ExecMainStatus --value ollama-api-service)" = 0 ]

# A mistake in the settings is not tried again and again.
echo PROT=9000 >>/etc/ollama-api-service/ollama-api-service.env
never systemctl start ollama-api-service
for i in $(seq 100); do systemctl is-failed ollama-api-service && break; sleep 0.1; done
[ "$(systemctl show --property=NRestarts --value ollama-api-service)" = 0 ]
journalctl --unit=ollama-api-service --output=cat | grep -F 'did you mean PORT?'
`, deb)
}
