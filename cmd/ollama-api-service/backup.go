package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/backup"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

const progressEvery = 500 * time.Millisecond

func (p *program) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the database and its secret to one file; the service may be running",
		Long: `Write a consistent copy of the database, and the secret that the service generated, to FILE: a tar archive with checksums that
		` + "`restore`" + ` reads. The service may keep running. FILE appears under its name only when it is complete and has been read back.

		FILE contains the secret and the hashes of all keys, so protect it like DATA_DIR. A SECRET_KEY from the settings is not in it: keep a copy
		of it. Requests of the last second may be missing, because they may not be in the database yet. "-" is standard output.`,
		Example: `  ollama-api-service backup /backup/ollama-api-service-$(date +%F).tar
  ollama-api-service backup --force /backup/latest.tar
  ollama-api-service backup - | gzip | ssh backup@nas 'cat > gateway.tar.gz'`,
		Args: cobra.ExactArgs(1),
	}
	force := cmd.Flags().Bool("force", false, "replace FILE if it exists")
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := p.settings()
		if err != nil {
			return err
		}
		if err := p.checkTarget(args[0], *force, *asJSON); err != nil {
			return err
		}
		st, _, err := openKeys(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		defer st.Close()
		src := backupSource(cfg, st)
		src.Now = p.now()
		size, err := st.Bytes(cmd.Context())
		if err != nil {
			return err
		}
		done := p.progress("Copying the database", size, copied(cfg, args[0]))
		m, err := p.writeBackup(cmd.Context(), cfg, src, args[0])
		done()
		if err != nil {
			return fmt.Errorf("no backup was made: %w", err)
		}
		return p.printBackup(m, args[0], *asJSON)
	}
	return cmd
}

// backupSource returns the inputs of a backup.
func backupSource(cfg *config.Config, st *store.Store) backup.Source {
	src := backup.Source{Store: st, Program: buildVersion()}
	if cfg.SecretKey == "" {
		src.Secret = config.SecretPath(cfg.DataDir)
	}
	return src
}

// backups returns the schedule that BACKUP_EVERY sets, or nil.
func backups(cfg *config.Config, st *store.Store, log *slog.Logger) *backup.Schedule {
	if cfg.BackupEvery == 0 {
		return nil
	}
	return &backup.Schedule{
		Every: cfg.BackupEvery, Keep: cfg.BackupKeep, Dir: cfg.BackupDir, Log: log,
		Source: func() backup.Source { return backupSource(cfg, st) },
	}
}

// checkTarget refuses an unusable target before any work is done.
func (p *program) checkTarget(path string, force, asJSON bool) error {
	if path == "-" {
		if asJSON {
			return usagef("standard output is the backup itself: name a FILE, or leave --json out")
		}
		if terminal(p.stdout) {
			return usagef("a backup is a binary file, which a terminal cannot show: name a FILE, or redirect standard output")
		}
		return nil
	}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return usagef("%s is a directory: name a file in it, like %s", path, filepath.Join(path, programName+".tar"))
	case err == nil && !force:
		return usagef("%s exists and was not changed: name another file, or add --force to replace it", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return usagef("%s cannot be written: %w", path, err)
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return usagef("the directory %s does not exist: create it, or name a file elsewhere", dir)
	}
	return nil
}

func (p *program) writeBackup(ctx context.Context, cfg *config.Config, src backup.Source, path string) (*backup.Manifest, error) {
	if path == "-" {
		return backup.Stream(ctx, src, scratchDir(cfg), p.stdout)
	}
	return backup.Write(ctx, src, path)
}

// scratchDir is the directory for the copy that Stream reads: DATA_DIR or, if that is read-only, the directory for temporary files.
func scratchDir(cfg *config.Config) string {
	if _, err := disk.Free(cfg.DataDir); errors.Is(err, syscall.EROFS) {
		return os.TempDir()
	}
	return cfg.DataDir
}

// copied is the path of the copy of the database while it grows. Its size shows the progress.
func copied(cfg *config.Config, path string) string {
	if path == "-" {
		path = filepath.Join(scratchDir(cfg), "backup")
	}
	return filepath.Join(path+".partial", filepath.Base(databasePath(cfg)))
}

func (p *program) printBackup(m *backup.Manifest, path string, asJSON bool) error {
	if asJSON {
		return printJSON(p.stdout, struct {
			File string `json:"file"`
			*backup.Manifest
		}{path, m})
	}
	out, where := p.stdout, path
	if path == "-" {
		out, where = p.stderr, "standard output"
	}
	_, err := fmt.Fprintf(out, "Backed up to %s: %s, %s.\n", where, contents(m), bytesText(m.Bytes()))
	if err == nil && !m.HasSecret() {
		_, err = fmt.Fprintln(out, "SECRET_KEY is a setting and is not in the backup. Keep a copy of it: without it, no key works.")
	}
	return err
}

func contents(m *backup.Manifest) string {
	return counted(m.Contents.Keys, "key") + " and " + counted(m.Contents.Requests, "request")
}

func counted(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// progress shows how much of a file has been written, until the returned function is called. It shows nothing if stderr is not a
// terminal.
func (p *program) progress(what string, size int64, path string) (done func()) {
	if !terminal(p.stderr) {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(p.stderr, "\r\x1b[K")
				return
			case <-tick.C:
			}
			if info, err := os.Stat(path); err == nil && size > 0 {
				fmt.Fprintf(p.stderr, "\r%s: %d %% of %s\x1b[K", what, min(100, info.Size()*100/size), bytesText(size))
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

func bytesText(n int64) string {
	const units = "kMGT"
	size, unit := float64(n), -1
	for size >= 1000 && unit < len(units)-1 {
		size /= 1000
		unit++
	}
	if unit < 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %cB", size, units[unit])
}
