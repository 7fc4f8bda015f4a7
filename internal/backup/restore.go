package backup

import (
	"archive/tar"
	"bytes"
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
	"strings"
	"syscall"
	"time"

	"ollama-api-service/internal/disk"
	"ollama-api-service/internal/store"
)

// Archive is a backup that is being read.
type Archive struct {
	Manifest Manifest
	tar      *tar.Reader
	plain    *bounded
	free     func(dir string) (int64, error)
}

const (
	// frame bounds what an archive has in addition to its files, in bytes: headers, padding and the blocks at its end. A tar program that
	// packed it again may add some.
	frame = 1 << 20
	// maxDatabase is larger than any database of this program, and small enough to be added to.
	maxDatabase = 1 << 50
	// spare is the space that a restore leaves on the disk, in bytes: a service that starts there needs some.
	spare = 64 << 20
	// lookEvery is the number of bytes after which the free space is checked again, because other programs write to the disk too.
	lookEvery = 64 << 20
)

// bounded ends with an error if there is more to read than the manifest says: a few compressed KiB can be terabytes.
type bounded struct {
	io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errMore
	}
	n, err := b.Reader.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

var errMore = errors.New("it contains more than its manifest lists: it was changed after it was written")

// Open reads the manifest of a backup, which may be compressed with gzip or zstd. It returns an error for other files, and for a backup
// of a newer version of this program.
func Open(ctx context.Context, r io.Reader) (*Archive, error) {
	plain, err := decompressed(reader{ctx, r})
	if err != nil {
		return nil, err
	}
	in := &bounded{plain, maxManifest + frame}
	a := &Archive{tar: tar.NewReader(in), plain: in, free: disk.Free}
	h, err := a.tar.Next()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil || h.Name != manifestName || h.Typeflag != tar.TypeReg || h.Size > maxManifest:
		return nil, errors.New("it is not a backup of this program: name a file that `ollama-api-service backup` wrote, unchanged or compressed with gzip or zstd")
	}
	text, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, cut(err)
	}
	if err := json.Unmarshal(text, &a.Manifest); err != nil || a.Manifest.Format != format {
		return nil, errors.New("it is not a backup of this program: its manifest has another format")
	}
	if v := a.Manifest.FormatVersion; v != formatVersion {
		return nil, fmt.Errorf("it has format %d and this program reads format %d: use the version that wrote it, %s", v, formatVersion, a.Manifest.Program)
	}
	if err := a.checkFiles(); err != nil {
		return nil, err
	}
	in.left = a.Manifest.Bytes() + frame
	return a, nil
}

// checkFiles checks that the list has only the two files that a backup may have. Names in an archive are never used as paths.
func (a *Archive) checkFiles() error {
	files := a.Manifest.Files
	if len(files) < 1 || len(files) > 2 || files[0].Name != databaseName || files[0].Size < 0 || files[0].Size > maxDatabase ||
		len(files) == 2 && (files[1].Name != secretName || files[1].Size < 0 || files[1].Size > maxSecret) {
		return errors.New("its manifest lists unexpected files: it was changed after it was written")
	}
	return nil
}

// each reads the files in order, passes each to take, and compares the content with the manifest.
func (a *Archive) each(take func(File, io.Reader) error) error {
	for _, want := range a.Manifest.Files {
		h, err := a.tar.Next()
		if err != nil {
			return cut(err)
		}
		if h.Name != want.Name || h.Typeflag != tar.TypeReg || h.Size != want.Size {
			return fmt.Errorf("%s in it does not match its manifest: it is damaged; use another backup", want.Name)
		}
		for field := range h.PAXRecords {
			if strings.HasPrefix(field, "GNU.sparse.") { // its size is no measure of what it reads
				return fmt.Errorf("%s in it is a sparse file, which no backup has: unpack it, and pack it without --sparse", want.Name)
			}
		}
		sum := sha256.New()
		content := io.TeeReader(a.tar, sum)
		if err := take(want, content); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return cut(err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
			return fmt.Errorf("the checksum of %s in it does not match its manifest: it is damaged; use another backup", want.Name)
		}
	}
	if _, err := a.tar.Next(); !errors.Is(err, io.EOF) {
		return errMore
	}
	return nil
}

// cut explains a failure to read the archive.
func cut(err error) error {
	if errors.Is(err, errMore) {
		return errMore
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is truncated: copy it again, or use another backup")
	}
	return fmt.Errorf("it cannot be read: %w", err)
}

// Unpacked is a backup that was checked completely, in a directory next to the files that it may replace.
type Unpacked struct {
	Manifest    Manifest
	SecretCheck []byte // SecretCheck of the database
	work        *workDir
	dataDir     string
}

// Unpack reads the rest of the backup into dataDir/restore.partial and checks it. It changes nothing else in dataDir, and removes what it
// has unpacked if it fails. If the disk has too little space, the error is syscall.ENOSPC in a *fs.PathError.
func (a *Archive) Unpack(ctx context.Context, dataDir string) (_ *Unpacked, err error) {
	if err := a.room(dataDir, a.Manifest.Bytes()); err != nil {
		return nil, err
	}
	work, err := takeWorkDir(filepath.Join(dataDir, "restore.partial"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			work.remove()
		}
	}()
	if err := a.each(func(f File, content io.Reader) error { return a.save(work.file(f.Name), f.Size, content) }); err != nil {
		return nil, err
	}
	contents, check, err := store.Examine(ctx, work.file(databaseName))
	if err != nil {
		return nil, err
	}
	if contents != a.Manifest.Contents {
		return nil, errors.New("the number of keys or requests in its database does not match its manifest: it was changed after it was written")
	}
	if check == nil {
		return nil, errors.New("its database has no SECRET_KEY, so no key in it can work: use another backup")
	}
	return &Unpacked{Manifest: a.Manifest, SecretCheck: check, work: work, dataDir: dataDir}, nil
}

// room reports whether size more bytes fit on the disk of dir. A file system that does not say how much is free is believed to have it.
func (a *Archive) room(dir string, size int64) error {
	free, err := a.free(dir)
	if err != nil && !errors.Is(err, syscall.ENOSPC) || err == nil && free == 0 || free >= size+spare {
		return nil
	}
	const mega = 1_000_000
	return &fs.PathError{Op: "unpack to", Path: dir, Err: fmt.Errorf("%d MB are still needed, with %d MB that stay free, and %d MB are free: make room, or set DATA_DIR to a larger disk (%w)",
		(size+spare)/mega, spare/mega, free/mega, syscall.ENOSPC)}
}

// save writes the content of a file of that size to path.
func (a *Archive) save(path string, size int64, content io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for err == nil && size > 0 {
		if err = a.room(filepath.Dir(path), size); err != nil {
			break
		}
		var n int64
		n, err = io.CopyN(f, content, min(size, lookEvery))
		size -= n
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = cut(err)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Secret returns the secret in the backup, or "" if there is none.
func (u *Unpacked) Secret() (string, error) {
	if !u.Manifest.HasSecret() {
		return "", nil
	}
	text, err := os.ReadFile(u.work.file(secretName))
	return string(bytes.TrimSpace(text)), err
}

// Discard removes the unpacked files. After Place it does nothing.
func (u *Unpacked) Discard() { u.work.remove() }

// Present returns the files in dataDir that would be replaced: a database, a secret, and the journal files, whose rows belong to that
// database.
func Present(dataDir string, journal []string) (paths []string, err error) {
	names := append(store.Files(filepath.Join(dataDir, databaseName)), filepath.Join(dataDir, secretName))
	for _, path := range append(names, journal...) {
		switch _, err := os.Lstat(path); {
		case err == nil:
			paths = append(paths, path)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return paths, nil
}

// Place moves the files into dataDir, and the files that are present there into a new directory next to them. It returns the path of that
// directory, or "" if there were none. No service may run on dataDir meanwhile. It may be repeated after a kill: at every moment there is
// a complete database under its name, old or new, or none as before.
func (u *Unpacked) Place(ctx context.Context, journal []string, now time.Time) (aside string, err error) {
	defer u.Discard()
	database := filepath.Join(u.dataDir, databaseName)
	// A log that was moved into its file need not move with it. The log of a damaged database stays and moves.
	_ = store.Fold(ctx, database)
	present, err := Present(u.dataDir, journal)
	if err != nil {
		return "", err
	}
	if len(present) > 0 {
		aside = filepath.Join(u.dataDir, "replaced-"+now.UTC().Format("20060102-150405.000"))
		if err := setAside(present, database, aside); err != nil {
			return "", fmt.Errorf("the files in %s cannot be moved aside and were not changed: %w", u.dataDir, err)
		}
	}
	if u.Manifest.HasSecret() {
		if err := os.Rename(u.work.file(secretName), filepath.Join(u.dataDir, secretName)); err != nil {
			return aside, err
		}
	}
	if err := os.Rename(u.work.file(databaseName), database); err != nil {
		return aside, err
	}
	return aside, disk.SyncDirectory(u.dataDir)
}

// setAside moves files away, all of them or none. The database stays until the new one takes its name, because without a database, a
// start would create an empty one.
func setAside(paths []string, database, aside string) (err error) {
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	var back []func()
	defer func() {
		if err == nil {
			return
		}
		for _, undo := range back {
			undo()
		}
		os.Remove(aside)
	}()
	for _, path := range paths {
		to := filepath.Join(aside, filepath.Base(path))
		if path == database {
			if err := os.Link(path, to); err != nil {
				return fmt.Errorf("%w; move the files away yourself and restore again", err)
			}
			back = append(back, func() { os.Remove(to) })
			continue
		}
		if err := os.Rename(path, to); err != nil {
			return err
		}
		back = append(back, func() { os.Rename(to, path) })
	}
	return disk.SyncDirectory(aside)
}
