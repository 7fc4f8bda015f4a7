package backend

// vulnerability is a known vulnerability of Ollama and the version that fixes it.
type vulnerability struct{ fixed, id, what string }

// vulnerabilities are the severe ones, from the Go vulnerability database and the CVE records. Most need an admin, or a hostile
// model or registry. An attacker who reaches the server without the gateway needs neither.
var vulnerabilities = []vulnerability{
	{"0.1.29", "CVE-2024-28224", "a web page can use it through a browser"},
	{"0.1.34", "CVE-2024-37032", "a hostile registry can write files and run programs"},
	{"0.1.46", "CVE-2024-39720", "a malformed model stops it"},
	{"0.1.47", "CVE-2024-45436", "an archive can write files elsewhere"},
	{"0.14.3", "CVE-2025-51471", "a hostile registry is sent the token for another"},
	{"0.17.1", "CVE-2026-7482", "a malformed model reads its memory"},
}

// Vulnerabilities returns the known vulnerabilities of the server's version, one sentence each, the newest last. It returns none if
// the version is unknown.
func (s State) Vulnerabilities() []string {
	var list []string
	for _, v := range vulnerabilities {
		if s.Older(v.fixed) {
			list = append(list, v.id+": "+v.what+" (fixed in "+v.fixed+")")
		}
	}
	return list
}
