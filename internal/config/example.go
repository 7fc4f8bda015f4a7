package config

import "strings"

const exampleHead = `# The settings of ollama-api-service. Copy this file to .env and change what you need. The values in comments are the defaults.
# The environment overrides this file, and an empty value counts as unset.
#
# Values: PORT=8000, quoted "with spaces", or 'with $ and # taken literally'. Outside single quotes, $NAME is the value of NAME
# further up in this file. Put comments on their own lines. Let no other user read the file: chmod 600 .env
#
# A secret can be in a file instead: set NAME_FILE to its path. A line break at its end is ignored. Docker and Kubernetes mount such
# files; systemd passes them as credentials (LoadCredential=SECRET_KEY:/path), which need no setting.
`

// Example returns the text of .env.example: each setting with its explanation and default.
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

Every setting of ollama-api-service, from the environment or from @.env@ in the working directory. The environment overrides the file, and
an empty value counts as unset. An unknown name in @.env@ or an invalid value is an error at start (exit 2). The message names the setting
and how to fix it, and never contains the value. [.env.example](../.env.example) is the same list as a file to copy.
@ollama-api-service settings@ shows the values in force and their sources.

SIGHUP (@systemctl reload@) reads the file again. Settings marked with "SIGHUP" then apply to new requests immediately. The log names
them, and the ones that need a restart. If any setting is invalid, all settings stay as they were. The environment of a running service
cannot change.

A secret setting has three forms, of which only one may be set: @NAME@ is the value; @NAME_FILE@ is the path of a file with the value,
where a line break at the end is ignored; and a systemd credential called @NAME@, or @name@ in lower case, contains the value:

@@@
[Service]
LoadCredential=SECRET_KEY:/etc/ollama-api-service/secret-key
@@@
`

// Reference returns the text of docs/settings.md: each setting with its default and its explanation.
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
