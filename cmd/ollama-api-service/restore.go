package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backup"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/usage"
)

func (p *program) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into DATA_DIR; the service must not run",
		Long: `Put what ` + "`backup`" + ` wrote to FILE into DATA_DIR. All of it is read and checked before anything is touched. The service must not run
meanwhile.

Where DATA_DIR has a database already, --force is needed. The old database, its secret and its journal are then kept in a new
directory DATA_DIR/replaced-TIME, to be removed when all is well. "-" is standard input.`,
		Example: `  systemctl stop ollama-api-service
  ollama-api-service restore /backup/ollama-api-service-2026-11-24.tar
  ollama-api-service restore --force /backup/latest.tar
  gzip -d < gateway.tar.gz | ollama-api-service restore -`,
		Args: cobra.ExactArgs(1),
	}
	force := cmd.Flags().Bool("force", false, "set aside the database that is there")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := p.settings()
		if err != nil {
			return err
		}
		in, err := openBackup(args[0])
		if err != nil {
			return err
		}
		defer in.Close()
		r := restoring{program: p, cfg: cfg, name: args[0], force: *force}
		if r.name == "-" {
			r.name = "standard input"
		}
		m, aside, err := r.restore(cmd.Context(), in)
		if err != nil {
			return err
		}
		return r.print(m, aside, *asJSON)
	}
	return cmd
}

func openBackup(path string) (*os.File, error) {
	if path == "-" {
		return os.Stdin, nil
	}
	in, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("there is no file %s: name one that `%s backup` made", path, programName)
	}
	if err != nil {
		return nil, usagef("the backup cannot be read: %w", err)
	}
	return in, nil
}

// restoring is one restore.
type restoring struct {
	*program
	cfg   *config.Config
	name  string // of the backup, as it was given
	force bool
}

// restore checks the backup, then puts it in its place. Where it fails before that, DATA_DIR is as it was.
func (r *restoring) restore(ctx context.Context, in io.Reader) (_ *backup.Manifest, aside string, err error) {
	archive, err := backup.Open(ctx, in)
	if err != nil {
		return nil, "", r.unusable(err)
	}
	journal, release, err := r.holdDataDir()
	if err != nil {
		return nil, "", err
	}
	defer func() { release(err == nil) }()
	present, err := backup.Present(r.cfg.DataDir, journal)
	if err != nil {
		return nil, "", usagef("DATA_DIR cannot be looked at: %w", err)
	}
	if len(present) > 0 && !r.force {
		return nil, "", usagef("there is %s already, and it was left as it is: set DATA_DIR to an empty directory, or have it set aside with --force", present[0])
	}
	unpacked, err := archive.Unpack(ctx, r.cfg.DataDir)
	if err != nil {
		return nil, "", r.unusable(err)
	}
	defer unpacked.Discard()
	if err := r.checkSecret(unpacked); err != nil {
		return nil, "", err
	}
	aside, err = unpacked.Place(ctx, journal, r.now())
	if err != nil {
		return nil, "", fmt.Errorf("the backup could not be put into %s: %w", r.cfg.DataDir, err)
	}
	return &unpacked.Manifest, aside, nil
}

// unusable is exit 3: this backup cannot be restored.
func (r *restoring) unusable(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: nothing was restored")
	}
	var path *fs.PathError
	if errors.As(err, &path) && path.Op != "read" {
		return fmt.Errorf("nothing was restored: %w", err) // DATA_DIR, not the backup
	}
	return databasef("%s cannot be restored, and nothing was touched: %w", r.name, err)
}

// holdDataDir makes DATA_DIR where there is none and keeps services away from it. It returns the files of the journal there, and
// what lets go again; a DATA_DIR that was made for nothing is then removed.
func (r *restoring) holdDataDir() (files []string, release func(used bool), err error) {
	dir := r.cfg.DataDir
	becomeOwner(dir)
	made := absent(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, usagef("DATA_DIR cannot be made: %w", err)
	}
	journal, err := usage.Hold(dir)
	if err != nil {
		return nil, nil, usagef("%v", err) // without its cause: no wait ends a service that runs
	}
	release = func(used bool) {
		journal.Release()
		if len(made) > 0 && !used {
			os.RemoveAll(dir)
			for _, parent := range made {
				os.Remove(parent)
			}
		}
	}
	if files, err = journal.Files(); err != nil {
		release(false)
		return nil, nil, usagef("DATA_DIR cannot be looked at: %w", err)
	}
	return files, release, nil
}

// absent are the directories that MkdirAll would make, the last first.
func absent(dir string) (list []string) {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			return list
		}
		list = append(list, dir)
		dir = filepath.Dir(dir)
	}
}

// checkSecret sees that the service will start: with a SECRET_KEY that is not the backup's it would not.
func (r *restoring) checkSecret(u *backup.Unpacked) error {
	text, err := u.Secret()
	if err != nil {
		return err
	}
	if r.cfg.SecretKey != "" {
		text = string(r.cfg.SecretKey)
	}
	if text == "" {
		return nil
	}
	if ok, _ := auth.NewSecret(text, string(r.cfg.SecretKeyPrevious)).Check(u.SecretCheck); ok {
		return nil
	}
	if r.cfg.SecretKey == "" {
		return databasef("%s cannot be restored, and nothing was touched: its secret is not that of its database; use another backup", r.name)
	}
	return databasef("SECRET_KEY is not the one that the keys in %s were stored under, and nothing was touched: set the one from then, or leave it out where the backup holds the secret", r.name)
}

func (r *restoring) print(m *backup.Manifest, aside string, asJSON bool) error {
	needsSecret := !m.HasSecret() && r.cfg.SecretKey == ""
	if asJSON {
		return printJSON(r.stdout, struct {
			DataDir string `json:"data_dir"`
			Aside   string `json:"set_aside,omitempty"`
			Needs   bool   `json:"needs_secret_key"`
			*backup.Manifest
		}{r.cfg.DataDir, aside, needsSecret, m})
	}
	out := r.stdout
	fmt.Fprintf(out, "Restored %s of %s (version %s) into %s: %s.\n",
		r.name, instant(m.CreatedAt), m.Program, r.cfg.DataDir, contents(m))
	if aside != "" {
		fmt.Fprintf(out, "What was there before is in %s: remove it when all is well.\n", aside)
	}
	if needsSecret {
		fmt.Fprintln(out, "SECRET_KEY was a setting and is not in the backup: set it as it was then, or the service will not start.")
	}
	_, err := fmt.Fprintln(out, "Now start the service.")
	return err
}
