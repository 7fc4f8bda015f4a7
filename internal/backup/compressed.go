package backup

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxWindow is the most memory that a zstd frame may require: zstd --long=27 writes such frames.
const maxWindow = 128 << 20

// decompressed returns the content of r, which may be compressed with gzip or zstd. The error names other compressions.
func decompressed(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(6)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		plain, err := gzip.NewReader(in)
		if err != nil {
			return nil, cut(err)
		}
		return plain, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// Without concurrency there is nothing to close.
		plain, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, cut(err)
		}
		return plain, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ")):
		return nil, packed("xz")
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, packed("bzip2")
	case bytes.HasPrefix(head, []byte{0x04, 0x22, 0x4d, 0x18}):
		return nil, packed("lz4")
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return nil, packed("unzip")
	case len(head) == 0 && errors.Is(err, io.EOF):
		return nil, errors.New("it is empty, so it is not a backup of this program: the copy may be incomplete; copy it again, or use another backup")
	}
	return in, nil
}

func packed(with string) error {
	return fmt.Errorf("its compression is not supported (only gzip and zstd are): unpack it with %s first", with)
}
