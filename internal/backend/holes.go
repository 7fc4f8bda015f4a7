package backend

// hole is a vulnerability of Ollama that was published with the version that mends it.
type hole struct{ fixed, id, what string }

// holes are the severe ones, from the Go vulnerability database and the CVE records. Most need an admin, or a model or registry
// that is hostile; who reaches the server past the gateway needs neither.
var holes = []hole{
	{"0.1.29", "CVE-2024-28224", "a web page can use it through a browser"},
	{"0.1.34", "CVE-2024-37032", "a hostile registry can write files and run programs"},
	{"0.1.46", "CVE-2024-39720", "a malformed model stops it"},
	{"0.1.47", "CVE-2024-45436", "an archive can write files elsewhere"},
	{"0.14.3", "CVE-2025-51471", "a hostile registry is sent the token for another"},
	{"0.17.1", "CVE-2026-7482", "a malformed model reads its memory"},
}

// Holes are the known vulnerabilities of the server's version, a sentence each, the newest last. A version that is not known has
// none that is known.
func (s State) Holes() []string {
	var list []string
	for _, h := range holes {
		if s.Older(h.fixed) {
			list = append(list, h.id+": "+h.what+" (mended in "+h.fixed+")")
		}
	}
	return list
}
