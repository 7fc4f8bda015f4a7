package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ollama-api-service/internal/config"
)

func (p *program) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man",
		Short: "Print the manual page",
		Long:  "Print the manual page: all commands, settings, files and exit codes. Packages install it as ollama-api-service(1).",
		Example: `  ollama-api-service man | man -l -
  ollama-api-service man > /usr/local/share/man/man1/ollama-api-service.1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(p.stdout, manual(cmd.Root(), buildDate(p.now())))
			return err
		},
	}
}

// buildDate is the commit date of this build, so that two builds of one commit have the same manual.
func buildDate(now time.Time) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if at, err := time.Parse(time.RFC3339, s.Value); err == nil && s.Key == "vcs.time" {
				now = at
			}
		}
	}
	return now.UTC().Format(time.DateOnly)
}

// page is a manual page in the macros of man(7), which every manual reader supports.
type page struct{ strings.Builder }

// manual is one page for the whole program, so that a search finds everything.
func manual(root *cobra.Command, date string) string {
	var m page
	fmt.Fprintf(&m, ".TH %s 1 %q %q\n", strings.ToUpper(programName), date, programName+" "+buildVersion())
	m.section("NAME")
	m.text(programName + " - " + root.Short)
	m.section("SYNOPSIS")
	fmt.Fprintf(&m, ".B %s\n[\n.I command\n]\n[\n.I flags\n]\n", roff(programName))
	m.section("DESCRIPTION")
	m.text(root.Long)
	m.section("COMMANDS")
	m.commands(root)
	m.section("FLAGS OF EVERY COMMAND")
	root.PersistentFlags().VisitAll(m.flag)
	m.section("SETTINGS")
	m.text("Settings come from the environment or from the settings file. An example of the file:")
	m.literal(config.Example())
	m.section("FILES")
	for _, f := range [][2]string{
		{envFile, "The settings, unless --env-file names others."},
		{"DATA_DIR/ollama-api-service.db", "The database: keys and usage. The files next to it that end in -wal and -shm are parts of it."},
		{"DATA_DIR/secret.key", "The secret that key texts are hashed with, if SECRET_KEY is not set."},
		{"DATA_DIR/journal/", "Requests that are not in the database yet."},
		{"DATA_DIR/acme/", "Certificates from ACME, with their keys and the account, if ACME_DOMAIN is set."},
		{"DATA_DIR/replaced-TIME/", "The files that a restore replaced."},
	} {
		m.item(f[0], f[1])
	}
	m.section("EXIT STATUS")
	for _, e := range [][2]string{
		{"0", "Success."},
		{"1", "Failure; the line on standard error says why, and what to do."},
		{"2", "Wrong usage or settings."},
		{"3", "The database or the backup is unusable, or belongs to another SECRET_KEY."},
	} {
		m.item(e[0], e[1])
	}
	m.section("EXAMPLES")
	m.literal(root.Example)
	return m.String()
}

// commands writes every runnable command; subcommands follow their group.
func (m *page) commands(parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		if c.Name() == "completion" {
			// The texts of cobra's own commands are written for a terminal.
			fmt.Fprintf(m, ".SS %q\n", "completion bash|fish|powershell|zsh")
			m.text("Print a completion script for the shell: commands, flags and keys. The --help of each says how to load it. Packages install them.")
			continue
		}
		if c.HasAvailableSubCommands() {
			m.commands(c)
			continue
		}
		fmt.Fprintf(m, ".SS %q\n", roff(strings.TrimPrefix(c.UseLine(), programName+" ")))
		m.text(cmp.Or(c.Long, c.Short))
		c.LocalNonPersistentFlags().VisitAll(m.flag)
		c.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			if parent.PersistentFlags().Lookup(f.Name) != nil && parent.HasParent() {
				m.flag(f)
			}
		})
		if c.Example != "" {
			m.literal(c.Example)
		}
	}
}

func (m *page) flag(f *pflag.Flag) {
	if f.Hidden || f.Name == "help" {
		return
	}
	kind, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if kind != "" {
		name += " " + kind
	}
	m.item(name, strings.ToUpper(usage[:1])+usage[1:]+".")
}

func (m *page) section(name string) { fmt.Fprintf(m, ".SH %s\n", name) }

func (m *page) item(tag, about string) { fmt.Fprintf(m, ".TP\n.B %s\n%s\n", roff(tag), roff(about)) }

// text writes paragraphs, which empty lines separate. An indented paragraph is written literally.
func (m *page) text(s string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			m.WriteString(".PP\n")
		}
		if strings.HasPrefix(paragraph, "  ") {
			m.literal(paragraph)
			continue
		}
		m.WriteString(roff(paragraph) + "\n")
	}
}

func (m *page) literal(s string) {
	if !strings.HasSuffix(m.String(), ".SH EXAMPLES\n") { // a heading begins a paragraph by itself
		m.WriteString(".PP\n")
	}
	fmt.Fprintf(m, ".nf\n%s\n.fi\n", roff(strings.TrimRight(s, "\n")))
}

// roff escapes text that would be read as markup: backslashes, hyphens that must stay copyable, and lines that would be requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "\t", "    ").Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
