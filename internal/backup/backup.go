// Package backup writes what a service must not lose, its database and its generated secret, to one file, and restores it.
//
// The file is a tar archive, so that it can be listed and unpacked without this program: first a manifest with the sizes and checksums of
// the other files, then the files under their names in DATA_DIR. It contains the secret, so it must be protected like it.
package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

const (
	format        = "ollama-api-service backup"
	formatVersion = 1

	manifestName = "manifest.json"
	databaseName = "ollama-api-service.db"
	secretName   = "secret.key"

	maxManifest = 64 << 10
	maxSecret   = 4 << 10
)

// Manifest describes a backup and its contents. It is the first file of the backup.
type Manifest struct {
	Format        string         `json:"format"`
	FormatVersion int            `json:"format_version"`
	Program       string         `json:"program_version"`
	CreatedAt     time.Time      `json:"created_at"`
	Contents      store.Contents `json:"contents"`
	Files         []File         `json:"files"` // in the order of the archive
}

// File is one file of a backup.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// HasSecret reports whether the backup contains the secret. It does not if SECRET_KEY is a setting.
func (m *Manifest) HasSecret() bool { return len(m.Files) == 2 }

// Bytes returns the size of all files together.
func (m *Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Source is the input of a backup.
type Source struct {
	Store   *store.Store
	Secret  string // path of the generated secret; "" if SECRET_KEY is a setting
	Program string // version of this program
	Now     time.Time
}

// Write creates the backup at path, either completely or not at all: it writes the file into path.partial, reads it back, checks it, and
// then renames it. The service may run meanwhile; the backup is a consistent snapshot. The next Write removes what a killed Write left.
// ctx may end it early.
func Write(ctx context.Context, src Source, path string) (*Manifest, error) {
	return writeIn(ctx, src, path+".partial", path)
}

func writeIn(ctx context.Context, src Source, dir, path string) (*Manifest, error) {
	work, err := takeWorkDir(dir)
	if err != nil {
		return nil, err
	}
	defer work.remove()
	whole := work.file("backup.tar")
	f, err := os.OpenFile(whole, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := pack(ctx, src, work, f)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := reread(ctx, f); err != nil {
		return nil, fmt.Errorf("the backup could not be read back correctly, so it was discarded: check the disk (%w)", err)
	}
	if err := f.Close(); err != nil { // Windows cannot rename an open file
		return nil, err
	}
	if err := os.Rename(whole, path); err != nil {
		return nil, err
	}
	return m, disk.SyncDirectory(filepath.Dir(path))
}

// Stream writes the backup to w. Meanwhile dir contains a copy of the database. The reader of w must check that everything arrives; Open
// and Unpack detect a truncated backup.
func Stream(ctx context.Context, src Source, dir string, w io.Writer) (*Manifest, error) {
	work, err := takeWorkDir(filepath.Join(dir, "backup.partial"))
	if err != nil {
		return nil, err
	}
	defer work.remove()
	return pack(ctx, src, work, w)
}

// pack copies the database, checks the copy and writes the archive.
func pack(ctx context.Context, src Source, work *workDir, w io.Writer) (*Manifest, error) {
	database := work.file(databaseName)
	if err := src.Store.Copy(ctx, database); err != nil {
		return nil, err
	}
	contents, _, err := store.Examine(ctx, database)
	if err != nil {
		return nil, fmt.Errorf("the copy of the database is damaged, so no backup was made: restore an older backup, or check the disk (%w)", err)
	}
	m := &Manifest{Format: format, FormatVersion: formatVersion, Program: src.Program, CreatedAt: src.Now.UTC(), Contents: contents}
	paths := []string{database}
	if src.Secret != "" {
		paths = append(paths, src.Secret)
	}
	for _, path := range paths {
		one, err := describe(ctx, path)
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, one)
	}
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	out := tar.NewWriter(w)
	if err := enter(out, manifestName, int64(len(head)), m.CreatedAt); err != nil {
		return nil, err
	}
	if _, err := out.Write(head); err != nil {
		return nil, err
	}
	for i, path := range paths {
		if err := add(ctx, out, path, m.Files[i], m.CreatedAt); err != nil {
			return nil, err
		}
	}
	return m, out.Close()
}

func describe(ctx context.Context, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, reader{ctx, f})
	return File{Name: filepath.Base(path), Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, err
}

func add(ctx context.Context, out *tar.Writer, path string, about File, at time.Time) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := enter(out, about.Name, about.Size, at); err != nil {
		return err
	}
	_, err = io.Copy(out, reader{ctx, f})
	return err
}

func enter(out *tar.Writer, name string, size int64, at time.Time) error {
	return out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.Truncate(time.Second), Format: tar.FormatPAX,
	})
}

// reread reads the written archive from the disk and compares all checksums.
func reread(ctx context.Context, f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	a, err := Open(ctx, f)
	if err != nil {
		return err
	}
	return a.each(func(File, io.Reader) error { return nil })
}

// reader stops when its context ends: reading a database of some gigabytes takes a while.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

const lockName = "lock" // in a workDir

// workDir is a directory for unfinished files. One process at a time has it. The kernel releases its lock however the process ends, so
// that the leftovers of a killed process can be told from the work of another one.
type workDir struct {
	dir     string
	lock    *disk.Lock
	removed bool
}

func takeWorkDir(dir string) (*workDir, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	lock, err := disk.TryLock(filepath.Join(dir, lockName))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("another backup or restore is running in %s: wait until it has finished", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be locked: %w", dir, err)
	}
	w := &workDir{dir: dir, lock: lock}
	if err := w.clear(); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return w, nil
}

// clear removes everything except the lock.
func (w *workDir) clear() error {
	left, err := os.ReadDir(w.dir)
	for _, e := range left {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(w.file(e.Name())))
		}
	}
	return err
}

func (w *workDir) file(name string) string { return filepath.Join(w.dir, name) }

// remove removes the directory once: a second call must not touch the files of another process. The next process removes what this one
// cannot.
func (w *workDir) remove() {
	if w.removed {
		return
	}
	w.removed = true
	_ = w.clear()
	_ = w.lock.Remove()
	_ = os.Remove(w.dir)
}
