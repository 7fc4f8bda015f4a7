package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set at link time: -ldflags "-X main.version=1.2.3".
var version string

// buildVersion is the version that the linker set or, without one, the version that the Go toolchain recorded.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = "-" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "-changed"
		}
	}
	return "dev" + revision + changed
}

// sqliteDriver is the version of modernc.org/sqlite in this build, which determines the version of SQLite.
func sqliteDriver() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "modernc.org/sqlite" {
				return d.Version
			}
		}
	}
	return "unknown"
}

func (p *program) versionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Show the version of this program and its parts", Args: cobra.NoArgs}
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(*cobra.Command, []string) error {
		platform := runtime.GOOS + "/" + runtime.GOARCH
		if *asJSON {
			return printJSON(p.stdout, map[string]string{
				"version": buildVersion(), "go": runtime.Version(), "platform": platform, "sqlite_driver": sqliteDriver(),
			})
		}
		_, err := fmt.Fprintf(p.stdout, "%s %s (%s, %s, SQLite driver %s)\n",
			programName, buildVersion(), runtime.Version(), platform, sqliteDriver())
		return err
	}
	return cmd
}
