// Command ollama-api-service is a gateway for Ollama with API keys, limits and statistics. It is both the service and the command-line
// tool that manages it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // many machines and images have no time zone database

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
)

const programName = "ollama-api-service"

// envFile is the settings file that is read if none is named. Packages set another one at link time, so that every command finds the
// settings of the installed service from any directory: -ldflags "-X main.envFile=/etc/…".
var envFile = ".env"

// The exit codes.
const (
	exitOK       = 0
	exitFailure  = 1
	exitUsage    = 2 // wrong command line or settings
	exitDatabase = 3 // the database is unusable, or belongs to another SECRET_KEY
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal, the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// run executes the program with args and returns the exit code. Results go to stdout, everything else to stderr.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	p := &program{environ: environ, stdout: stdout, stderr: stderr, random: rand.Reader, now: time.Now}
	root := p.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !p.started && exitOf(err) == exitFailure {
		// An error of cobra: an unknown command or flag, or too many arguments.
		err = usagef("%s; see %s --help", strings.Join(strings.Fields(err.Error()), " "), programName)
	}
	fmt.Fprintf(p.stderr, "%s: %s\n", programName, sentence(err))
	return exitOf(err)
}

// program holds what the commands share.
type program struct {
	environ        []string
	envFile        string
	envFileNamed   bool
	stdout, stderr io.Writer
	random         io.Reader
	now            func() time.Time
	started        bool // the command line was understood
}

func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use:   programName,
		Short: "API keys, limits and statistics in front of Ollama",
		Long: `API keys, limits and statistics in front of Ollama, in one program.

Without a command, it runs the service. The settings come from the environment and from .env; .env.example explains each.
Exit codes: 0 success, 1 failure that a later attempt may not meet, 2 wrong usage or settings, 3 the database (or backup) is unusable or
belongs to another SECRET_KEY.`,
		Example: `  ollama-api-service serve --demo                          try it out on this machine
  ollama-api-service keys create --name "Anna's laptop"    create a key; it works at once
  ollama-api-service keys list                             list the keys
  ollama-api-service stats                                 show usage by key and model
  ollama-api-service queue                                 show requests that run and wait, live
  ollama-api-service connect codex --key KEY               show how to set up a client program
  OLLAMA_HOST=http://localhost:8000/k/KEY ollama run llama3.2`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			p.started = true
			p.envFileNamed = cmd.Flags().Changed("env-file")
		},
	}
	root.PersistentFlags().StringVar(&p.envFile, "env-file", envFile, "settings file; environment variables override it")
	serveCmd := p.serveCommand()
	root.Flags().AddFlagSet(serveCmd.Flags())
	root.RunE = serveCmd.RunE
	root.AddCommand(serveCmd, p.keysCommand(), p.statsCommand(), p.auditCommand(), p.queueCommand(), p.connectCommand(),
		p.backupCommand(), p.restoreCommand(), p.settingsCommand(), p.healthcheckCommand(), p.manCommand(), p.versionCommand())
	return root
}

func (p *program) serveCommand() *cobra.Command {
	var demo, check, asJSON bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service (the default)",
		Long: `Run the service until SIGTERM or Ctrl-C. SIGHUP reads the settings file and the certificate again and applies the settings that can
		change while the service runs (docs/settings.md marks them). The first start creates the database in DATA_DIR, a SECRET_KEY if none is
		set, and an admin key, which it prints once.`,
		Example: `  ollama-api-service serve
  ollama-api-service serve --demo
  ollama-api-service serve --check     check settings, files, database and servers without starting
  OLLAMA_BASE_URL=http://10.0.0.7:11434 PORT=9000 ollama-api-service serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return p.check(cmd.Context(), demo, asJSON)
			}
			if asJSON {
				return usagef("--json is for --check: leave it out, or add --check")
			}
			// From the very beginning: SIGHUP must not end the process during a start either.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			// The service must neither end nor block when the reader of its output goes away.
			signal.Ignore(syscall.SIGPIPE)
			endByAbort()
			p.stderr = &boundedWriter{out: p.stderr, wait: logEnd}
			cfg, err := p.settingsInTime(cmd.Context(), demo)
			switch {
			case err != nil && cmd.Context().Err() != nil:
				return nil // stopped by a signal while it waited for the settings
			case err != nil:
				return err
			}
			return serve(cmd.Context(), cfg, hangup, p.stdout, p.stderr)
		},
	}
	cmd.Flags().BoolVar(&demo, "demo", false, "add demo-admin-key-12345 and demo-user-key-67890; only with a loopback HOST")
	cmd.Flags().BoolVar(&check, "check", false, "check settings, files, the database and the servers without starting; exit 0, or with the code that a start would have")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --check: print JSON")
	return cmd
}

// serveSettings returns the settings for serve.
func (p *program) serveSettings(demo bool) (*config.Config, error) {
	cfg, err := p.settings()
	if err == nil && demo {
		err = cfg.EnableDemo()
	}
	return cfg, err
}

// settings reads the settings. A file named with --env-file must exist.
func (p *program) settings() (*config.Config, error) {
	if p.envFileNamed {
		if _, err := os.Stat(p.envFile); errors.Is(err, fs.ErrNotExist) {
			return nil, usagef("the settings file %s does not exist: correct --env-file, or mount its disk (%w)", p.envFile, fs.ErrNotExist)
		}
	}
	return config.Load(p.envFile, p.environ)
}

// exitError is an error with an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usagef is an error in the command line or the settings: exit 2.
func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// databasef is an unusable database, or one that belongs to another SECRET_KEY: exit 3.
func databasef(format string, args ...any) error {
	return &exitError{exitDatabase, fmt.Errorf(format, args...)}
}

func exitOf(err error) int {
	var exit *exitError
	var setting *config.Error
	var e *api.Error
	switch {
	case transient(err):
		return exitFailure // a supervisor may try again
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &setting):
		return exitUsage
	case errors.As(err, &e) && e.Code == api.CodeBadRequest:
		return exitUsage
	}
	return exitFailure
}

// sentence is the text for the terminal. It includes the private cause of an error, because its reader is the operator.
func sentence(err error) string {
	var e *api.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	if fault, ok := disk.Cause(e.Err); ok {
		return fmt.Sprintf("%s: %s (%v)", e.Message, fault.Hint, e.Err)
	}
	if e.Err != nil {
		return fmt.Sprintf("%s (%v)", e.Message, e.Err)
	}
	return e.Message
}
