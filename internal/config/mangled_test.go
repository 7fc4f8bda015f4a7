package config

import (
	"slices"
	"strings"
	"testing"
)

func TestDotenvValuesThatWouldChange(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"undefined":                 {"PORT=1\nADMIN_API_KEY=canary0123456789abc$NOWHERE_ELSE\n", "ADMIN_API_KEY (line 2 of "},
		"undefined, named":          {"ADMIN_API_KEY=canary0123456789abc$NOWHERE_ELSE\n", "$NOWHERE_ELSE"},
		"undefined, in braces":      {"ADMIN_API_KEY=canary0123456789abc${NOWHERE}def\n", "$NOWHERE"},
		"undefined, quoted":         {"ADMIN_API_KEY=\"canary0123456789abc$NOWHERE\"\n", "line 1"},
		"part of a secret":          {"ADMIN_API_KEY=canary0123456789$X7QK0123\n", "a $ followed by a name"},
		"of the environment":        {"DATA_DIR=$HOME/data\n", "$HOME"},
		"with a digit, no secret":   {"DATA_DIR=/x/$DISK_2\n", "$DISK_2"},
		"further down":              {"DATA_DIR=/x/$PORT\nPORT=1\n", "$PORT"},
		"two dollars":               {"ADMIN_API_KEY=canary0123456789$$NOWHERE\n", "$NOWHERE"},
		"with a default, undefined": {"DATA_DIR=${NOWHERE:-/x}\n", "$NOWHERE"},
		"with a default, defined":   {"PORT=1\nDATA_DIR=${PORT:-/x}\n", "in an unsupported form"},
		"a command":                 {"PORT=1\nDATA_DIR=/$(PORT)/x\n", "in an unsupported form"},
		"a lost backslash":          {"PORT=1\nADMIN_API_KEY=\"canary0123456789\\defghij\"\n", "backslash"},
		"a line break":              {"ADMIN_API_KEY=\"canary0123456789\\nefghij\"\n", "line break"},
		"a quote closed later":      {"ADMIN_API_KEY=\"canary0123456789abc\nLOG_FORMAT=json\"\n", "line break"},
		"typographic quotes":        {"ADMIN_API_KEY=“canary0123456789abcdef”\n", "typographic"},
		"a no-break space":          {"ADMIN_API_KEY=canary0123456789\u00a0abcdef\n", "U+00A0"},
		"a zero-width space":        {"ADMIN_API_KEY=canary0123456789abcdef\u200b\n", "U+200B"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, c.text), nil)
			text := refused(t, err, c.says, "canary")
			if strings.Contains(text, "X7QK0123") {
				t.Errorf("the message contains a part of the secret: %s, want no %q", text, "X7QK0123")
			}
		})
	}
	// Values that are kept as written.
	for text, want := range map[string]string{
		"ADMIN_API_KEY='abc$NOWHERE#0123456789abcd'":              "abc$NOWHERE#0123456789abcd",
		`ADMIN_API_KEY=abc\$NOWHERE0123456789abcd`:                "abc$NOWHERE0123456789abcd",
		"ADMIN_API_KEY=abc$lower0123456789abcd$":                  "abc$lower0123456789abcd$",
		`ADMIN_API_KEY=abc\def0123456789abcdefgh`:                 `abc\def0123456789abcdefgh`,
		`ADMIN_API_KEY="abc\\def0123456789abcdefgh"`:              `abc\def0123456789abcdefgh`,
		`ADMIN_API_KEY="abc\"def0123456789abcdefgh"`:              `abc"def0123456789abcdefgh`,
		"PORT=1234\nADMIN_API_KEY=abcdefghijklmnopqr${PORT}xyz\n": "abcdefghijklmnopqr1234xyz",
	} {
		c, err := Load(write(t, text), nil)
		if err != nil || string(c.AdminAPIKey) != want {
			t.Errorf("%s: %v, want the value %q", text, err, want)
		}
	}
}

// docker run --env-file and systemd credentials keep quotes, which a .env parser removes.
func TestQuotesThatTheEnvironmentKeeps(t *testing.T) {
	for _, s := range settingList() {
		for _, quote := range []string{`"`, "'"} {
			_, err := Load(absent(t), []string{s.name + "=" + quote + "canary0123456789abcdefghijklmnopqr" + quote})
			refused(t, err, s.name+" begins and ends with a quote", "canary")
		}
	}
	// Quotes inside a value are part of it.
	if c := load(t, `ADMIN_API_KEY="abc"def0123456789abcdef`); string(c.AdminAPIKey) != `"abc"def0123456789abcdef` {
		t.Error("quotes inside a value are lost")
	}
}

func TestSpaceAroundValues(t *testing.T) {
	if c := load(t, "PORT= 1234 ", "LOG_FORMAT=text\r", "DATA_DIR=\t/x "); c.Port != 1234 || c.LogFormat != LogText || c.DataDir != "/x" {
		t.Errorf("spaces around values are not trimmed: %s, want 1234, %v, %q", c, LogText, "/x")
	}
	for _, value := range []string{goodSecret + " ", goodSecret + "\r", "\t" + goodSecret, goodSecret + "\u00a0", goodSecret + "\nx"} {
		_, err := Load(absent(t), []string{"SECRET_KEY=" + value})
		refused(t, err, "SECRET_KEY", goodSecret)
	}
}

func TestNearNamesInTheEnvironment(t *testing.T) {
	for name, want := range map[string]string{
		"RATE_LIMT": "DEFAULT_USER_RATE_LIMIT", "OLLAMA_BASE_ULR": "OLLAMA_BASE_URL", "SECRETKEY": "SECRET_KEY", "DATA_DIRR": "DATA_DIR",
		"log_level": "LOG_LEVEL", "ADMIN_API_KEY_FIEL": "ADMIN_API_KEY_FILE", "TRUSTED_PROXY": "",
		"PORTS": "", "HOSTS": "", "POST": "", "OLLAMA_BASE_URLS": "", "OLLAMA_HOST": "", "BASE_URL": "", "API_KEY": "", "IDLE_TIMEOUT": "",
		"SERVICE_NAME": "", "XDG_DATA_DIRS": "", "OTEL_TRACES_SAMPLER": "", "HOSTNAME": "", "PATH": "", "LD_LIBRARY_PATH": "",
	} {
		warnings := load(t, name+"=canary").Warnings
		if want == "" && len(warnings) > 0 {
			t.Errorf("%s: warnings %q, want none", name, warnings)
		}
		if want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], "did you mean "+want+"?") || strings.Contains(warnings[0], "canary")) {
			t.Errorf("%s: warnings %q, want one that names %s and no value", name, warnings, want)
		}
	}
	if w := load(t, "RATE_LIMT=").Warnings; len(w) > 0 {
		t.Errorf("an empty value: %q, want no warning", w)
	}
}

func TestDistance(t *testing.T) {
	for pair, want := range map[[2]string]int{
		{"", ""}: 0, {"", "ab"}: 2, {"PORT", "PROT"}: 1, {"PORT", "POT"}: 1, {"PORT", "PORTS"}: 1, {"PORT", "PART"}: 1, {"PORT", "HOST"}: 2, {"ABCD", "BADC"}: 2,
	} {
		if got := []int{distance(pair[0], pair[1]), distance(pair[1], pair[0])}; !slices.Equal(got, []int{want, want}) {
			t.Errorf("%q: %v, want %d both ways", pair, got, want)
		}
	}
}
