package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDotenvForms(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"plain":             {"ADMIN_API_KEY=abcdefghijklmnopqrstuvwx\n", "abcdefghijklmnopqrstuvwx"},
		"no newline":        {"ADMIN_API_KEY=abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwx"},
		"byte order mark":   {"\ufeffADMIN_API_KEY=abcdefghijklmnopqrstuvwx\n", "abcdefghijklmnopqrstuvwx"},
		"CRLF":              {"# x\r\nADMIN_API_KEY=abcdefghijklmnopqrstuvwx\r\nPORT=1\r\n", "abcdefghijklmnopqrstuvwx"},
		"export":            {"export ADMIN_API_KEY=abcdefghijklmnopqrstuvwx\n", "abcdefghijklmnopqrstuvwx"},
		"double quotes":     {`ADMIN_API_KEY="abcdefghijklmnopqrst#uvwx"`, "abcdefghijklmnopqrst#uvwx"},
		"single quotes":     {`ADMIN_API_KEY='abcdefghijkl$PORT#nopqrstuvwx'`, "abcdefghijkl$PORT#nopqrstuvwx"},
		"expansion":         {"PORT=1234\nADMIN_API_KEY=abcdefghijklmnopqrst$PORT", "abcdefghijklmnopqrst1234"},
		"comment behind":    {"ADMIN_API_KEY=abcdefghijklmnopqrstuvwx # mine\n", "abcdefghijklmnopqrstuvwx"},
		"empty means unset": {"ADMIN_API_KEY=\nPORT=\nLOG_FORMAT=\"\"\n", ""},
		"empty, at end":     {"ADMIN_API_KEY=", ""},
		"quoted sharp":      {`ADMIN_API_KEY='#bcdefghijklmnopqrstuvwx'`, "#bcdefghijklmnopqrstuvwx"},
	} {
		t.Run(name, func(t *testing.T) {
			c2, err := Load(write(t, c.text), nil)
			if err != nil {
				t.Fatal(err)
			}
			if string(c2.AdminAPIKey) != c.want {
				t.Errorf("value is %q, want %q", string(c2.AdminAPIKey), c.want)
			}
		})
	}
}

// The backslashes of a Windows path are kept without quotes, in single quotes, and doubled in double quotes.
func TestDotenvWindowsPaths(t *testing.T) {
	for _, value := range []string{`C:\new\temp data`, `'C:\new\temp data'`, `"C:\\new\\temp data"`} {
		c, err := Load(write(t, "DATA_DIR="+value+"\r\nPORT=1\r\n"), nil)
		if err != nil {
			t.Errorf("%s: %v", value, err)
			continue
		}
		if want, err := filepath.Abs(`C:\new\temp data`); err != nil || c.DataDir != want {
			t.Errorf("%s is read as %q, want %q", value, c.DataDir, want)
		}
	}
}

func TestEnvironmentWins(t *testing.T) {
	path := write(t, "PORT=1234\nHOST=127.0.0.2\nLOG_FORMAT=text\n")
	c, err := Load(path, []string{"PORT=4321", "HOST=", "PATH=/bin", "=C:=odd", "noequals"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Port != 4321 || c.Host != "127.0.0.2" || c.LogFormat != LogText {
		t.Errorf("settings are %s, want 4321, %q, %v", c, "127.0.0.2", LogText)
	}
}

func TestBadDotenv(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"unknown name":         {"# a\nPORT=8000\nLOG_LEVLE=info\n", "LOG_LEVLE (line 3 of "},
		"unknown, suggestion":  {"MAX_QUEU=5\n", "did you mean MAX_QUEUE?"},
		"unknown, exported":    {"\n\nexport RATE_LIMT = 5\n", "RATE_LIMT (line 3 of "},
		"later version's name": {"DATABASE_URL=postgres://canary\n", "DATABASE_URL (line 1 of "},
		"lower case":           {"PORT=1\nport=8000\n", "line 2 of "},
		"secret first":         {"PORT=1\ncanarysecret=\n", "line 2 of "},
		"no equals":            {"PORT=1\ncanary secret\nHOST=x\n", "line 2 of "},
		"no equals, last":      {"PORT=1\n\ncanary", "line 3 of "},
		"open quote":           {"PORT=1\nSECRET_KEY=\"canary\nHOST=127.0.0.1\n", "line 2 of "},
		"comment as a value":   {"PORT=1\nSECRET_KEY= # canary 0123456789 0123456789 0123456789\n", "SECRET_KEY (line 2 of "},
		"not UTF-8":            {"PORT=\xff\n", "UTF-8"},
		"UTF-16":               {"\xff\xfeP\x00O\x00", "UTF-8"},
		"NUL":                  {"PORT=80\x0000\n", "UTF-8"},
		"huge":                 {strings.Repeat("# canary\n", 40_000), "larger"},
		"bad value":            {"PORT=canary\n", "PORT must"},
		"Windows path":         {"PORT=1\r\nDATA_DIR=\"C:\\new\\data\"\r\n", "DATA_DIR (line 2 of "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, c.text), nil)
			text := refused(t, err, c.says, "canary")
			if strings.Contains(text, "canarysecret") {
				t.Errorf("the message contains a possible secret: %s, want no %q", text, "canarysecret")
			}
		})
	}
}

func TestDotenvThatIsNoFile(t *testing.T) {
	_, err := Load(t.TempDir(), nil)
	refused(t, err, "--env-file", "")
	_, err = Load(filepath.Join(write(t, ""), ".env"), nil) // below a file: not "absent"
	refused(t, err, "cannot be read", "")
}

func TestWorldReadableDotenv(t *testing.T) {
	path := write(t, "PORT=1234\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "chmod 600") {
		t.Errorf("warnings are %q, want 1 of them, %q in it", c.Warnings, "chmod 600")
	}
}

func FuzzDotenv(f *testing.F) {
	for _, seed := range []string{"PORT=1", "export A=\"b\nc\"", "\ufeffX: y", "A=$B\nB=${A}", "A=\\$(x)", "'", "A='", "=", "A", "\r\n=#"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		values, err := parseDotenv(".env", text)
		if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "line 0")) {
			t.Errorf("message: %q", err)
		}
		for name := range values {
			if _, ok := settings()[name]; !ok {
				t.Errorf("%q was accepted as a setting", name)
			}
		}
	})
}
