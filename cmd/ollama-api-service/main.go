// Command ollama-api-service is a gateway in front of Ollama: API keys, limits and statistics. It is the service and the tool
// for its keys in one.
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
	_ "time/tzdata" // machines and images without zones of time are common

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
)

const programName = "ollama-api-service"

// envFile is the file with settings that is read where none is named. Packages set another one at link time, so that every command
// finds the settings of the installed service from everywhere: -ldflags "-X main.envFile=/etc/…".
var envFile = ".env"

// The exit codes.
const (
	exitOK       = 0
	exitFailure  = 1
	exitUsage    = 2 // of the command line or of the settings
	exitDatabase = 3 // unusable, or of another SECRET_KEY
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// run is the whole program: it does what args say, and returns the exit code. Answers go to stdout, all else to stderr.
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
		// cobra's own: an unknown command or flag, an argument too many.
		err = usagef("%s; see %s --help", strings.Join(strings.Fields(err.Error()), " "), programName)
	}
	fmt.Fprintf(p.stderr, "%s: %s\n", programName, sentence(err))
	return exitOf(err)
}

// program is what the commands share.
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

Without a command it serves. The settings come from the environment and from .env; .env.example explains each.
Exit codes: 0 done, 1 failed and may succeed later, 2 wrong usage or settings, 3 the database (or backup) is unusable or belongs to
another SECRET_KEY.`,
		Example: `  ollama-api-service serve --demo                          try it out on this machine
  ollama-api-service keys create --name "Anna's laptop"    make a key; it works at once
  ollama-api-service keys list                             who has keys
  ollama-api-service stats                                 who used how much
  ollama-api-service queue                                 who waits for what, live
  ollama-api-service connect codex --key KEY               how a client program is set up
  OLLAMA_HOST=http://localhost:8000/k/KEY ollama run llama3.2`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			p.started = true
			p.envFileNamed = cmd.Flags().Changed("env-file")
		},
	}
	root.PersistentFlags().StringVar(&p.envFile, "env-file", envFile, "file with settings; the environment wins over it")
	serve := p.serveCommand()
	root.Flags().AddFlagSet(serve.Flags())
	root.RunE = serve.RunE
	root.AddCommand(serve, p.keysCommand(), p.statsCommand(), p.auditCommand(), p.queueCommand(), p.connectCommand(),
		p.backupCommand(), p.restoreCommand(), p.settingsCommand(), p.healthcheckCommand(), p.manCommand(), p.versionCommand())
	return root
}

func (p *program) serveCommand() *cobra.Command {
	var demo, check, asJSON bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service (the default)",
		Long: `Run the service until SIGTERM or Ctrl-C. SIGHUP reads the settings file and the certificate again and takes over what can change
while the service runs: docs/settings.md marks it. The first start makes the database in DATA_DIR, a SECRET_KEY where none is set, and an
admin key, which is printed once.`,
		Example: `  ollama-api-service serve
  ollama-api-service serve --demo
  ollama-api-service serve --check     look at settings, files, database and servers, without starting
  OLLAMA_BASE_URL=http://10.0.0.7:11434 PORT=9000 ollama-api-service serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return p.check(cmd.Context(), demo, asJSON)
			}
			if asJSON {
				return usagef("--json is for --check: leave it out, or add --check")
			}
			// From the beginning: a hang-up must not end a start either.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			// A service outlives what reads its output: it must neither end with it nor wait for it.
			signal.Ignore(syscall.SIGPIPE)
			endByAbort()
			p.stderr = &boundedWriter{out: p.stderr, wait: logEnd}
			cfg, err := p.settingsInTime(cmd.Context(), demo)
			switch {
			case err != nil && cmd.Context().Err() != nil:
				return nil // it was told to stop while it waited for them
			case err != nil:
				return err
			}
			return serve(cmd.Context(), cfg, hangup, p.stdout, p.stderr)
		},
	}
	cmd.Flags().BoolVar(&demo, "demo", false, "add demo-admin-key-12345 and demo-user-key-67890, on a loopback HOST alone")
	cmd.Flags().BoolVar(&check, "check", false, "start nothing: look at settings, files, the database and the servers; exit 0, or the code that a start would end with")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --check: print JSON")
	return cmd
}

// serveSettings is the settings that serve runs with.
func (p *program) serveSettings(demo bool) (*config.Config, error) {
	cfg, err := p.settings()
	if err == nil && demo {
		err = cfg.EnableDemo()
	}
	return cfg, err
}

// settings reads the settings. A file that was asked for by name must be there.
func (p *program) settings() (*config.Config, error) {
	if p.envFileNamed {
		if _, err := os.Stat(p.envFile); errors.Is(err, fs.ErrNotExist) {
			return nil, usagef("there is no settings file %s: correct --env-file, or mount the disk that it is on (%w)", p.envFile, fs.ErrNotExist)
		}
	}
	return config.Load(p.envFile, p.environ)
}

// exitError is an error that ends the program with a code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usagef is an error of the command line or the settings: exit 2.
func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// databasef is an unusable database, or one of another SECRET_KEY: exit 3.
func databasef(format string, args ...any) error {
	return &exitError{exitDatabase, fmt.Errorf(format, args...)}
}

func exitOf(err error) int {
	var exit *exitError
	var setting *config.Error
	var e *api.Error
	switch {
	case passing(err):
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

// sentence is what the person at the terminal reads. The private cause of a failure is for the operator, who that is.
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
