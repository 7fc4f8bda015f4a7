package auth

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
)

func TestMintMakesWhatParseReads(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		text, preview, err := Mint(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := Parse(text); !ok || got != preview {
			t.Fatalf("Parse = %q, %v; want %q", got, ok, preview)
		}
		if len(text) != 53 || !strings.HasPrefix(text, preview+"_") || len(preview) != 14 || seen[text] {
			t.Fatalf("a key of %d characters, preview %q", len(text), preview)
		}
		seen[text] = true
		again, err := Reissue(rand.Reader, preview)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := Parse(again); !ok || got != preview || again == text {
			t.Fatalf("Reissue: Parse = %q, %v", got, ok)
		}
	}
}

// The format is a promise to secret scanners and to existing keys: this text must stay valid.
func TestFormatStays(t *testing.T) {
	body := "oas_0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
	n, sum := crc32.ChecksumIEEE([]byte(body)), ""
	for range 6 {
		sum = string(base62[n%62]) + sum
		n /= 62
	}
	const want = "oas_0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef04CyNz"
	if body+sum != want {
		t.Errorf("key text is %s, want %s", body+sum, want)
	}
	if preview, ok := Parse(want); !ok || preview != "oas_0123456789" {
		t.Errorf("Parse = %q, %v", preview, ok)
	}
	if got := fmt.Sprintf("%x", NewSecret("key", "").MAC("The quick brown fox jumps over the lazy dog")); got != "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8" {
		t.Errorf("MAC = %s, want %q", got, "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8")
	}
}

func TestParseRefusesEveryChange(t *testing.T) {
	text, _, _ := Mint(rand.Reader)
	for i := range text {
		for _, c := range []byte("0Az_ \x00\xff") {
			if b := []byte(text); b[i] != c {
				b[i] = c
				if _, ok := Parse(string(b)); ok {
					t.Fatalf("character %d changed to %q and still valid", i, c)
				}
			}
		}
	}
	for _, bad := range []string{"", text[:52], text + "x", "sk-" + text[3:], strings.ToUpper(text)} {
		if _, ok := Parse(bad); ok {
			t.Errorf("%q is valid", bad)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	text, _, _ := Mint(rand.Reader)
	if n := testing.AllocsPerRun(100, func() { Parse(text) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// Without the rejection of bytes 248 to 255, the characters 0 to 7 would be 5/4 times as frequent.
func TestRandomTextHasNoBias(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	text, err := randomText(bytes.NewReader(bytes.Repeat(every, 48)), 248*12)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range base62 {
		if n := strings.Count(text, string(c)); n != 4*12 {
			t.Errorf("got %q %d times, want 48", c, n)
		}
	}
}

func TestMintReportsDryRandomness(t *testing.T) {
	if _, _, err := Mint(bytes.NewReader(make([]byte, 60))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error is %v, want %v", err, io.ErrUnexpectedEOF)
	}
	if _, err := Reissue(rand.Reader, "env-admin"); err == nil {
		t.Error("a static preview was reissued")
	}
}

func TestSecretCheck(t *testing.T) {
	stored := NewSecret("one", "").CheckMAC()
	for _, c := range []struct {
		current, previous string
		ok, outdated      bool
	}{
		{"one", "", true, false},
		{"two", "", false, false},
		{"two", "one", true, true},
		{"one", "two", true, false},
	} {
		if ok, outdated := NewSecret(c.current, c.previous).Check(stored); ok != c.ok || outdated != c.outdated {
			t.Errorf("Check under %s, %s = %v, %v, want %v, %v", c.current, c.previous, ok, outdated, c.ok, c.outdated)
		}
	}
	if ok, _ := NewSecret("one", "").Check(nil); ok {
		t.Error("a nil check matches")
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	s := NewSecret("canary-secret", "canary-previous")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, s); strings.Contains(out, "canary") {
			t.Errorf("%s prints %s, want no %q", verb, out, "canary")
		}
	}
}

func FuzzParse(f *testing.F) {
	text, _, _ := Mint(rand.Reader)
	for _, seed := range []string{text, "", "oas_", text[:52], text + "\n", strings.Repeat("oas_", 20), "' OR 1=1--"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		preview, ok := Parse(s)
		if !ok {
			return
		}
		body := s[:bodyLength]
		if !strings.HasPrefix(s, preview+"_") || s != body+checksumText(crc32.ChecksumIEEE([]byte(body))) {
			t.Errorf("%q was accepted as a key", s)
		}
	})
}
