// Command release writes the files that users download from the programs that `make release` has built: an archive and an SBOM for
// each platform, the install script, SHA256SUMS of all files, and a signature if there is a command for it. One commit makes the
// same files, byte for byte; only signatures differ.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	program   = "ollama-api-service"
	checksums = "SHA256SUMS"
)

type options struct {
	version string
	at      time.Time // date of everything in the release
	root    string    // of the repository
	stage   string    // built files: OS/ARCH/PROGRAM for each platform, and files for all platforms in share/
	out     string    // may already contain files, which SHA256SUMS lists too
	url     string    // where the release will be, for the install script; may be empty
	sign    string    // shell command that signs the file whose name is appended to it; may be empty
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("release: ")
	var o options
	flag.StringVar(&o.version, "version", "dev", "version, as git describe prints it")
	seconds := flag.Int64("time", 0, "date of everything in the release, in Unix seconds")
	flag.StringVar(&o.root, "root", "../..", "root of the repository")
	flag.StringVar(&o.stage, "stage", "", "directory of the built files")
	flag.StringVar(&o.out, "out", "", "directory to write to")
	flag.StringVar(&o.url, "url", "", "https address where the files will be, for the install script")
	flag.StringVar(&o.sign, "sign", "", "command that signs "+checksums+"; the name of the file is appended")
	flag.Parse()
	o.at = time.Unix(*seconds, 0).UTC()
	if err := write(o); err != nil {
		log.Fatal(err)
	}
	fmt.Println(o.out)
}

func write(o options) error {
	if o.sign != "" && strings.HasSuffix(o.version, "-dirty") {
		return fmt.Errorf("%s is not the version of a commit, so it is not signed: commit first, or leave SIGN out", o.version)
	}
	binaries, err := filepath.Glob(filepath.Join(o.stage, "*", "*", program+"*"))
	if err != nil || len(binaries) == 0 {
		return fmt.Errorf("there are no programs in %s: run make release", o.stage)
	}
	common, err := commonFiles(o.root, filepath.Join(o.stage, "share"))
	if err != nil {
		return err
	}
	for _, binary := range binaries {
		if err := writePlatform(o, binary, common); err != nil {
			return fmt.Errorf("%s: %w", binary, err)
		}
	}
	if err := writeInstaller(o); err != nil {
		return err
	}
	if err := writeChecksums(o.out); err != nil {
		return err
	}
	return sign(o.out, o.sign)
}

// writePlatform writes the archive and the SBOM of one program, STAGE/OS/ARCH/PROGRAM.
func writePlatform(o options, binary string, common []file) error {
	arch := filepath.Base(filepath.Dir(binary))
	system := filepath.Base(filepath.Dir(filepath.Dir(binary)))
	name := strings.Join([]string{program, o.version, system, arch}, "_")
	content, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	bom, err := billOfMaterials(o, binary, content)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.out, name+".cdx.json"), bom, 0o644); err != nil {
		return err
	}
	files := append([]file{{filepath.Base(binary), 0o755, content}}, common...)
	pack, suffix := tarGzip, ".tar.gz"
	if system == "windows" {
		pack, suffix = zipped, ".zip"
	}
	archive, err := pack(name, files, o.at)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, name+suffix), archive, 0o644)
}

// installerURL is the line of install.sh that the release fills in.
const installerURL = "default_url=''\n"

func writeInstaller(o options) error {
	text, err := os.ReadFile(filepath.Join(o.root, "deploy", "release", "install.sh"))
	if err != nil {
		return err
	}
	if strings.Count(string(text), installerURL) != 1 {
		return fmt.Errorf("install.sh has no line %q", installerURL)
	}
	if strings.ContainsAny(o.url, "'\n") {
		return fmt.Errorf("%q is not an address", o.url)
	}
	completed := strings.Replace(string(text), installerURL, "default_url='"+o.url+"'\n", 1)
	return os.WriteFile(filepath.Join(o.out, "install.sh"), []byte(completed), 0o755)
}

// writeChecksums lists every file of dir in the format of sha256sum.
func writeChecksums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "%x  %s\n", sha256.Sum256(content), e.Name())
	}
	return os.WriteFile(filepath.Join(dir, checksums), []byte(list.String()), 0o644)
}

// sign runs the command in dir and checks that it has written a signature next to SHA256SUMS.
func sign(dir, command string) error {
	if command == "" {
		return nil
	}
	cmd := exec.Command("sh", "-c", command+" "+checksums) //nolint:gosec // the command is that of who makes the release
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, os.Stdin, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("SIGN, %q, failed: %w", command, err)
	}
	signatures, err := filepath.Glob(filepath.Join(dir, checksums+".*"))
	if err == nil && len(signatures) == 0 {
		err = fmt.Errorf("SIGN, %q, wrote no file %s.* next to %s", command, checksums, checksums)
	}
	return err
}
