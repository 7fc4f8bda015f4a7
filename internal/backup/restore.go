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
	// frame is what an archive may have besides its files, in bytes: headers, padding and the blocks of its end. A tar program that
	// packed it again may add some.
	frame = 1 << 20
	// maxDatabase is more than a database of this program can have, and little enough to be added to.
	maxDatabase = 1 << 50
	// spare is the space that a restore leaves on the disk, in bytes: a service that starts there needs some.
	spare = 64 << 20
	// lookEvery is after how many bytes the disk is looked at again, because others write to it too.
	lookEvery = 64 << 20
)

// bounded ends with an error where more comes than was said: a few KiB that are compressed can be terabytes.
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

var errMore = errors.New("there is more in it than its manifest says: it was changed after it was made")

// Open reads the manifest of a backup, compressed with gzip or zstd or as it was made. It returns an error for what is none, and for one of
// a newer version of this program.
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
		return nil, errors.New("it is no backup of this program: name a file that `ollama-api-service backup` made, as it made it or compressed with gzip or zstd")
	}
	text, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, cut(err)
	}
	if err := json.Unmarshal(text, &a.Manifest); err != nil || a.Manifest.Format != format {
		return nil, errors.New("it is no backup of this program: its manifest is another")
	}
	if v := a.Manifest.FormatVersion; v != formatVersion {
		return nil, fmt.Errorf("it has format %d and this program reads format %d: use the version that made it, %s", v, formatVersion, a.Manifest.Program)
	}
	if err := a.checkFiles(); err != nil {
		return nil, err
	}
	in.left = a.Manifest.Bytes() + frame
	return a, nil
}

// checkFiles holds the list of files to the two that a backup may have. No name in an archive ever becomes a path.
func (a *Archive) checkFiles() error {
	files := a.Manifest.Files
	if len(files) < 1 || len(files) > 2 || files[0].Name != databaseName || files[0].Size < 0 || files[0].Size > maxDatabase ||
		len(files) == 2 && (files[1].Name != secretName || files[1].Size < 0 || files[1].Size > maxSecret) {
		return errors.New("its manifest lists other files than a backup has: it was changed after it was made")
	}
	return nil
}

// each reads the files in order, hands each to take, and compares what was read with the manifest.
func (a *Archive) each(take func(File, io.Reader) error) error {
	for _, want := range a.Manifest.Files {
		h, err := a.tar.Next()
		if err != nil {
			return cut(err)
		}
		if h.Name != want.Name || h.Typeflag != tar.TypeReg || h.Size != want.Size {
			return fmt.Errorf("%s in it is not what its manifest says: it is damaged; use another backup", want.Name)
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
			return fmt.Errorf("%s in it has another checksum than its manifest says: it is damaged; use another backup", want.Name)
		}
	}
	if _, err := a.tar.Next(); !errors.Is(err, io.EOF) {
		return errMore
	}
	return nil
}

// cut says what a failure to read on means.
func cut(err error) error {
	if errors.Is(err, errMore) {
		return errMore
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends too early: it was not copied whole; copy it again, or use another backup")
	}
	return fmt.Errorf("it cannot be read: %w", err)
}

// Unpacked is a backup whose every byte was checked, in a directory beside what it may replace.
type Unpacked struct {
	Manifest    Manifest
	SecretCheck []byte // what the database says of the SECRET_KEY it belongs to
	work        *workplace
	dataDir     string
}

// Unpack reads the rest of the backup into dataDir/restore.partial and examines it. Nothing else in dataDir is touched, and what it has
// unpacked goes when it fails. Where the disk has too little room, the error is syscall.ENOSPC and a *fs.PathError.
func (a *Archive) Unpack(ctx context.Context, dataDir string) (_ *Unpacked, err error) {
	if err := a.room(dataDir, a.Manifest.Bytes()); err != nil {
		return nil, err
	}
	work, err := takeWorkplace(filepath.Join(dataDir, "restore.partial"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			work.leave()
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
		return nil, errors.New("its database holds another number of keys or requests than its manifest says: it was changed after it was made")
	}
	if check == nil {
		return nil, errors.New("its database was never bound to a SECRET_KEY, so no key in it can work: use another backup")
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

// Secret is the secret in the backup, "" where it has none.
func (u *Unpacked) Secret() (string, error) {
	if !u.Manifest.HasSecret() {
		return "", nil
	}
	text, err := os.ReadFile(u.work.file(secretName))
	return string(bytes.TrimSpace(text)), err
}

// Discard removes what was unpacked. After Place it does nothing.
func (u *Unpacked) Discard() { u.work.leave() }

// Present is what lies in dataDir and would be replaced: a database, a secret, and the journal files, whose rows belong to the
// database that they lie beside.
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

// Place puts the files into dataDir, and what is present there into a new directory beside them, whose path it returns; "" when
// nothing was. No service may run on dataDir meanwhile. It may be repeated after a kill: at every moment there is a whole
// database under its name, the old one or the new one, or none as before.
func (u *Unpacked) Place(ctx context.Context, journal []string, now time.Time) (aside string, err error) {
	defer u.Discard()
	database := filepath.Join(u.dataDir, databaseName)
	// A log that was folded into its file needs not move with it. That of a damaged database stays and moves.
	_ = store.Fold(ctx, database)
	present, err := Present(u.dataDir, journal)
	if err != nil {
		return "", err
	}
	if len(present) > 0 {
		aside = filepath.Join(u.dataDir, "replaced-"+now.UTC().Format("20060102-150405.000"))
		if err := setAside(present, database, aside); err != nil {
			return "", fmt.Errorf("what is in %s cannot be set aside, and is as it was: %w", u.dataDir, err)
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

// setAside moves files away, all of them or none. The database stays until the new one takes its name: without one, a start would
// make an empty one.
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
