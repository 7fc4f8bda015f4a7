package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// header is one block of a tar archive, written by hand: the package writes none of these.
func header(t *testing.T, kind byte, name string, size int64) []byte {
	t.Helper()
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000600\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// padded is content in whole blocks.
func padded(content string) []byte {
	return append([]byte(content), make([]byte, (512-len(content)%512)%512)...)
}

// extended is the header with more fields of what follows it.
func extended(t *testing.T, fields ...string) []byte {
	t.Helper()
	var text strings.Builder
	for i := 0; i < len(fields); i += 2 {
		line := " " + fields[i] + "=" + fields[i+1] + "\n"
		n := len(line) + 1
		for n != len(fmt.Sprint(n))+len(line) {
			n++
		}
		fmt.Fprint(&text, n, line)
	}
	return append(header(t, tar.TypeXHeader, "x", int64(text.Len())), padded(text.String())...)
}

// endless is a piece again and again, and counts what is read of it.
type endless struct {
	piece []byte
	read  int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.piece[e.read%int64(len(e.piece)):])
	e.read += int64(n)
	return n, nil
}

// A backup that unpacks to more than its manifest says, or than the disk has, is refused before it fills anything, and nothing of it stays.
func TestBombsAreRefused(t *testing.T) {
	_, src := service(t)
	_, m := write(t, src)
	begin := func(files ...File) []byte { // an archive that ends behind its manifest
		text := made(t, Manifest{Format: format, FormatVersion: formatVersion, Contents: m.Contents, Files: files})
		return text[:len(text)-1024]
	}
	claims := func(size int64) []byte { return begin(File{databaseName, size, ""}) }
	database := func(kind byte, size int64) []byte { return header(t, kind, databaseName, size) }
	const huge = 7 << 30 // about the largest that a plain header can say
	const is, more, none, other = "does not match its manifest", "more than its manifest lists", "not a backup of this program", "unexpected files"
	comment := extended(t, "comment", strings.Repeat("a", 900_000))
	sparse := extended(t, "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", databaseName, "GNU.sparse.realsize", fmt.Sprint(100<<20))
	whole := begin(file(databaseName, "x"))
	whole = slices.Concat(whole, database(tar.TypeReg, 1), padded("x"))
	for name, c := range map[string]struct {
		content []byte
		forever []byte // follows it again and again
		says    string
	}{
		"more than the disk has":           {slices.Concat(claims(huge), database(tar.TypeReg, huge)), make([]byte, 512), "1073 MB are free"},
		"more than any disk has":           {claims(1 << 60), make([]byte, 512), other},
		"sizes that overflow":              {begin(File{databaseName, 1<<63 - 1, ""}, File{secretName, 1, ""}), make([]byte, 512), other},
		"longer than its manifest says":    {slices.Concat(claims(512), database(tar.TypeReg, huge)), make([]byte, 512), is},
		"a sparse file":                    {slices.Concat(claims(100<<20), sparse, header(t, tar.TypeReg, "x", 512), padded("0\n")), nil, "sparse"},
		"a sparse file of old":             {slices.Concat(claims(100<<20), database(tar.TypeGNUSparse, 0)), nil, "cannot be read"},
		"a link":                           {slices.Concat(claims(5), database(tar.TypeSymlink, 5)), padded("/etc/"), is},
		"headers before the manifest":      {nil, comment, none},
		"headers behind the manifest":      {claims(512), comment, more},
		"headers behind the last file":     {whole, comment, more},
		"entries that it must not have":    {whole, slices.Concat(header(t, tar.TypeReg, "more", 1), padded("x")), more},
		"one entry more, and it is large":  {slices.Concat(whole, header(t, tar.TypeReg, "more", huge)), make([]byte, 512), more},
		"a manifest that is large":         {header(t, tar.TypeReg, manifestName, huge), []byte(" "), none},
		"a secret that is no key but a GB": {begin(file(databaseName, "x"), File{secretName, 1 << 30, ""}), make([]byte, 512), other},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			rest := &endless{piece: c.forever}
			in := io.Reader(bytes.NewReader(c.content))
			if c.forever != nil {
				in = io.MultiReader(in, rest)
			}
			a, err := Open(t.Context(), in)
			if err == nil {
				a.free = func(string) (int64, error) { return 1 << 30, nil }
				_, err = a.Unpack(t.Context(), dir)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
			if rest.read > 4<<20 {
				t.Errorf("%d bytes were read of what does not belong to it, want at most 4 MiB", rest.read)
			}
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("left: %q, want none", left)
			}
		})
	}
}

// A compressed bomb is the same: what counts is what comes out.
func TestCompressedBombsAreRefused(t *testing.T) {
	_, src := service(t)
	_, m := write(t, src)
	const size = 30 << 20
	text := made(t, Manifest{Format: format, FormatVersion: formatVersion, Contents: m.Contents, Files: []File{{databaseName, size, ""}}})
	var zipped, zstded bytes.Buffer
	zs, err := zstd.NewWriter(&zstded)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gzip.NewWriter(&zipped), zs} {
		zeros := io.LimitReader(&endless{piece: make([]byte, 64<<10)}, size)
		if _, err := io.Copy(w, io.MultiReader(bytes.NewReader(text[:len(text)-1024]), bytes.NewReader(header(t, tar.TypeReg, databaseName, size)), zeros)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{"gzip": zipped.Bytes(), "zstd": zstded.Bytes()} {
		dir := t.TempDir()
		a, err := Open(t.Context(), bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		a.free = func(string) (int64, error) { return size + spare - 1, nil }
		if _, err = a.Unpack(t.Context(), dir); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s of %d bytes: error %v, want one of no space", name, len(content), err)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%s: left: %q, want none", name, left)
		}
	}
}

// The disk is looked at again while a backup is unpacked, because others write to it too.
func TestADiskThatFillsMeanwhile(t *testing.T) {
	_, src := service(t)
	path, m := write(t, src)
	for free, says := range map[int64]string{
		spare + m.Files[0].Size:     "",
		spare + m.Files[0].Size - 1: "make room",
		0:                           "", // the file system does not say
	} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		dir := t.TempDir()
		a, err := Open(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		looks := 0
		a.free = func(string) (int64, error) {
			looks++
			if looks > 1 {
				return free, nil
			}
			return 1 << 40, nil
		}
		u, err := a.Unpack(t.Context(), dir)
		if err == nil {
			u.Discard()
		}
		if looks < 2 || says == "" && err != nil || says != "" && (!errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%d bytes free at the second look of %d: error %v, want one with %q", free, looks, err, says)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("left: %q, want none", left)
		}
	}
}
