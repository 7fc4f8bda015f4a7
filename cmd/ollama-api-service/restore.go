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

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/backup"
	"ollama-api-service/internal/books"
	"ollama-api-service/internal/config"
)

func (p *program) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a backup into DATA_DIR; the service must be stopped",
		Long: `Restore the FILE that ` + "`backup`" + ` wrote into DATA_DIR. The command reads and checks the whole backup before it changes anything. The
		service must be stopped.

		If DATA_DIR has a database, --force is needed. The command then moves the old database, its secret and its journal into a new directory
		DATA_DIR/replaced-TIME, which you can remove once the restored service works. "-" is standard input.`,
		Example: `  systemctl stop ollama-api-service
  ollama-api-service restore /backup/ollama-api-service-2026-11-24.tar
  ollama-api-service restore --force /backup/latest.tar
  gzip -d < gateway.tar.gz | ollama-api-service restore -`,
		Args: cobra.ExactArgs(1),
	}
	force := cmd.Flags().Bool("force", false, "move an existing database aside")
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
		return nil, usagef("there is no file %s: name a file that `%s backup` wrote", path, programName)
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
	name  string // of the backup, as typed
	force bool
}

// restore checks the backup, then moves it into place. If it fails before that, DATA_DIR is unchanged.
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
		return nil, "", usagef("DATA_DIR cannot be read: %w", err)
	}
	if len(present) > 0 && !r.force {
		return nil, "", usagef("%s already exists and was not changed: set DATA_DIR to an empty directory, or add --force to move it aside", present[0])
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
		return fmt.Errorf("nothing was restored: %w", err) // a fault of DATA_DIR, not of the backup
	}
	return databasef("%s cannot be restored, and nothing was changed: %w", r.name, err)
}

// holdDataDir creates DATA_DIR if it does not exist and locks it against services. It returns the files of the journal there, and a
// function that unlocks DATA_DIR and, if it was not used, removes the directories that were created.
func (r *restoring) holdDataDir() (files []string, release func(used bool), err error) {
	dir := r.cfg.DataDir
	becomeOwner(dir)
	made := missingDirs(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, usagef("DATA_DIR cannot be created: %w", err)
	}
	journal, err := books.Hold(dir)
	if err != nil {
		return nil, nil, usagef("%v", err) // without its cause: waiting does not stop a running service
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
		return nil, nil, usagef("DATA_DIR cannot be read: %w", err)
	}
	return files, release, nil
}

// missingDirs returns the directories that MkdirAll would create, the deepest first.
func missingDirs(dir string) (list []string) {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			return list
		}
		list = append(list, dir)
		dir = filepath.Dir(dir)
	}
}

// checkSecret checks that the service will start: its SECRET_KEY must be the one of the backup.
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
		return databasef("%s cannot be restored, and nothing was changed: its secret does not match its database; use another backup", r.name)
	}
	return databasef("SECRET_KEY is not the one that the keys in %s were hashed with, and nothing was changed: set the SECRET_KEY of the backup, or unset it if the backup contains the secret", r.name)
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
		r.name, api.ShowTime(m.CreatedAt), m.Program, r.cfg.DataDir, contents(m))
	if aside != "" {
		fmt.Fprintf(out, "The previous files are in %s: remove them once the restored service works.\n", aside)
	}
	if needsSecret {
		fmt.Fprintln(out, "SECRET_KEY was a setting and is not in the backup: set it to the same value, otherwise the service does not start.")
	}
	_, err := fmt.Fprintln(out, "Now start the service.")
	return err
}
