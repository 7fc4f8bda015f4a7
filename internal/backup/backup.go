// Package backup keeps what a service must not lose - its database and the secret it made - in one file, and puts it back.
//
// The file is a tar archive, so that it can be looked at and unpacked without this program: first a manifest with the sizes and
// checksums of the rest, then the files under the names that they have in DATA_DIR. It holds the secret, so it is as secret.
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

// Manifest says what a backup is and holds. It is the first file in it.
type Manifest struct {
	Format        string         `json:"format"`
	FormatVersion int            `json:"format_version"`
	Program       string         `json:"program_version"`
	CreatedAt     time.Time      `json:"created_at"`
	Contents      store.Contents `json:"contents"`
	Files         []File         `json:"files"` // in the order in which they follow
}

// File is one file of a backup.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// HasSecret says whether the secret is in it; where SECRET_KEY is a setting it is not.
func (m *Manifest) HasSecret() bool { return len(m.Files) == 2 }

// Bytes is the size of all files together.
func (m *Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// Source is what is backed up.
type Source struct {
	Store   *store.Store
	Secret  string // path of the file with the secret that the service made; "" where SECRET_KEY is a setting
	Program string // version of this program
	Now     time.Time
}

// Write makes the backup at path, complete or not at all: it is written beside it, in path.partial, read again, checked, and only
// then gets its name. The service may run meanwhile; the backup is the state of one moment. What a killed Write left is removed
// by the next one. ctx may end it early.
func Write(ctx context.Context, src Source, path string) (*Manifest, error) {
	return writeIn(ctx, src, path+".partial", path)
}

func writeIn(ctx context.Context, src Source, dir, path string) (*Manifest, error) {
	work, err := takeWorkplace(dir)
	if err != nil {
		return nil, err
	}
	defer work.leave()
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
		return nil, fmt.Errorf("the backup was written but does not read back as it was, so it is not kept: look at the disk (%w)", err)
	}
	if err := f.Close(); err != nil { // Windows renames no open file
		return nil, err
	}
	if err := os.Rename(whole, path); err != nil {
		return nil, err
	}
	return m, disk.SyncDirectory(filepath.Dir(path))
}

// Stream writes the backup to w. The copy of the database that it is made from stands in dir for that time. Who reads w must see
// to it that all of it arrives; Open and Unpack notice when it did not.
func Stream(ctx context.Context, src Source, dir string, w io.Writer) (*Manifest, error) {
	work, err := takeWorkplace(filepath.Join(dir, "backup.partial"))
	if err != nil {
		return nil, err
	}
	defer work.leave()
	return pack(ctx, src, work, w)
}

// pack copies the database, examines the copy and writes the archive.
func pack(ctx context.Context, src Source, work *workplace, w io.Writer) (*Manifest, error) {
	database := work.file(databaseName)
	if err := src.Store.Copy(ctx, database); err != nil {
		return nil, err
	}
	contents, _, err := store.Examine(ctx, database)
	if err != nil {
		return nil, fmt.Errorf("the copy of the database is not sound, so no backup was made: restore an older backup, or look at the disk (%w)", err)
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
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.Truncate(time.Second), Format: tar.FormatPAX})
}

// reread reads a written archive from the disk and compares all checksums.
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

// reader ends with its context: a database of some gigabytes takes a while.
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

const lockName = "lock" // in a workplace

// workplace is a directory for what is not ready yet. One process at a time has it: the kernel lets go of its lock however the
// process ends, so that what a killed one left can be told from what another one does.
type workplace struct {
	dir  string
	lock *disk.Lock
	left bool
}

func takeWorkplace(dir string) (*workplace, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	lock, err := disk.TryLock(filepath.Join(dir, lockName))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("another backup or restore is at work in %s: wait until it is done", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be locked: %w", dir, err)
	}
	w := &workplace{dir: dir, lock: lock}
	if err := w.clear(); err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	return w, nil
}

// clear removes everything but the lock.
func (w *workplace) clear() error {
	left, err := os.ReadDir(w.dir)
	for _, e := range left {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(w.file(e.Name())))
		}
	}
	return err
}

func (w *workplace) file(name string) string { return filepath.Join(w.dir, name) }

// leave removes it, once: a second call must not touch what another process has there by then. What cannot be removed, the next
// process removes.
func (w *workplace) leave() {
	if w.left {
		return
	}
	w.left = true
	_ = w.clear()
	_ = w.lock.Remove()
	_ = os.Remove(w.dir)
}
