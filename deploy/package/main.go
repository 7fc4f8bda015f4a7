// Command package writes the Debian and the RPM package of what `make packages` has built. Run it in its own directory.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("package: ")
	version := flag.String("version", "dev", "version, as git describe prints it")
	arch := flag.String("arch", "amd64", "architecture, as Go names it")
	seconds := flag.Int64("time", 0, "date of everything in the packages, in Unix seconds")
	stage := flag.String("stage", "../../bin/package", "directory of the built files")
	out := flag.String("out", ".", "directory to write to")
	flag.Parse()
	for _, format := range []string{"deb", "rpm"} {
		path, err := write(format, packageVersion(*version), *arch, *stage, time.Unix(*seconds, 0).UTC(), *out)
		if err != nil {
			log.Fatalf("%s: %v", format, err)
		}
		fmt.Println(path)
	}
}

func write(format, version, arch, stage string, at time.Time, dir string) (path string, err error) {
	config, err := nfpm.ParseFileWithEnvMapping("nfpm.yaml", func(name string) string {
		return map[string]string{"VERSION": version, "ARCH": arch, "STAGE": stage}[name]
	})
	if err != nil {
		return "", err
	}
	info, err := config.Get(format)
	if err != nil {
		return "", err
	}
	// One source makes the same package, no matter when and where it is built.
	info.MTime = at
	info.RPM.BuildHost = "localhost"
	info = nfpm.WithDefaults(info)
	for _, c := range info.Contents {
		if c.FileInfo == nil {
			c.FileInfo = &files.ContentFileInfo{}
		}
		c.FileInfo.MTime = at
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	if err := packager.Package(info, f); err != nil {
		f.Close()
		return "", err
	}
	return path, f.Close()
}

var (
	release  = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)(?:-([0-9A-Za-z.]*[A-Za-z.][0-9A-Za-z.]*))??(?:-(\d+)-(g[0-9a-f]+))?(-dirty)?$`)
	unusable = regexp.MustCompile(`[^0-9A-Za-z.+~]+`)
)

// packageVersion converts the output of git describe so that both package managers order it: 1.2.0~rc.1 before 1.2.0 before
// 1.2.0+3.gabc1234 (three commits later). A build without a tag is older than every release.
func packageVersion(describe string) string {
	m := release.FindStringSubmatch(describe)
	if m == nil {
		return "0.0.0~" + strings.Trim(unusable.ReplaceAllString(describe, "."), ".")
	}
	v := m[1]
	if m[2] != "" {
		v += "~" + m[2]
	}
	var later []string
	if m[3] != "" {
		later = append(later, m[3], m[4])
	}
	if m[5] != "" {
		later = append(later, "dirty")
	}
	if len(later) > 0 {
		v += "+" + strings.Join(later, ".")
	}
	return v
}
