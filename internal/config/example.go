package config

import "strings"

const exampleHead = `# The settings of ollama-api-service. Copy this file to .env and change what you need; what stands here commented out is the
# default. The environment wins over this file, and an empty value is no value.
#
# Values: PORT=8000, quoted "with spaces", or 'with $ and # as they are'. Outside single quotes $NAME is the value of NAME
# further up in this file. Comments stand on lines of their own. Keep the file to yourself: chmod 600 .env
#
# A secret may be in a file instead: NAME_FILE is its path, and the last line break in it does not count. Docker and Kubernetes mount
# such files; systemd passes them as credentials (LoadCredential=SECRET_KEY:/path), which need no setting.
`

// Example is the text of .env.example: each setting with its explanation and default.
func Example() string {
	var b strings.Builder
	b.WriteString(exampleHead)
	for _, s := range settingList() {
		b.WriteString("\n")
		for line := range strings.SplitSeq(s.doc, "\n") {
			b.WriteString("# " + line + "\n")
		}
		b.WriteString("#" + s.name + "=" + s.standard + "\n")
		if s.secret() {
			b.WriteString("#" + s.name + fileSuffix + "=\n")
		}
	}
	return b.String()
}

const referenceHead = `# Settings

Every setting of ollama-api-service, from the environment or from @.env@ in the working directory; the environment wins, and an
empty value is no value. A name in @.env@ that is none of these is an error at start (exit 2), and so is a value that cannot be
obeyed; the message names the setting and the mend, and never shows the value. [.env.example](../.env.example) is the same list to
copy. @ollama-api-service settings@ shows what is in force and where it is from.

A hang-up (SIGHUP, @systemctl reload@) reads the file again. Settings marked with "SIGHUP" are then in force at once, for requests that
begin; the log names them, and those that need a restart. A mistake keeps all settings as they were. The environment of a running service
cannot change.

A setting that holds a secret has three forms, of which one may be set: @NAME@ is the value; @NAME_FILE@ is the path of a file that
holds it, without its last line break; and a systemd credential called @NAME@, or @name@ in small letters, holds it:

@@@
[Service]
LoadCredential=SECRET_KEY:/etc/ollama-api-service/secret-key
@@@
`

// Reference is the text of docs/settings.md: each setting with its default and its explanation.
func Reference() string {
	var b strings.Builder
	b.WriteString(strings.ReplaceAll(referenceHead, "@", "`"))
	for _, s := range settingList() {
		standard := "none"
		if s.standard != "" {
			standard = "`" + s.standard + "`"
		}
		file := ""
		if s.secret() {
			file = ". Also `" + s.name + fileSuffix + "`, or a systemd credential."
		}
		b.WriteString("\n## " + s.name + "\n\nDefault: " + standard + file)
		if s.reload {
			b.WriteString(" · SIGHUP")
		}
		b.WriteString("\n\n")
		example := false
		for line := range strings.SplitSeq(s.doc, "\n") {
			indented := strings.HasPrefix(line, "  ")
			if indented != example {
				b.WriteString("```\n")
			}
			example = indented
			b.WriteString(strings.TrimPrefix(line, "  ") + "\n")
		}
		if example {
			b.WriteString("```\n")
		}
	}
	return b.String()
}
