package config

import "strings"

const exampleHead = `# The settings of ollama-api-service. Copy this file to .env and change what you need; what stands here commented out is the
# default. The environment wins over this file, and an empty value is no value.
#
# Values: PORT=8000, quoted "with spaces", or 'with $ and # as they are'. Outside single quotes $NAME is the value of NAME
# further up in this file. Comments stand on lines of their own. Keep the file to yourself: chmod 600 .env
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
	}
	return b.String()
}
