package server

// Line is a line of the route table as tests see it.
type Line struct {
	Method, Template        string
	Anyone, AdminsOnly      bool
	Ollama, Counted, OpenAI bool
	Upstream                string
}

// Table is the route table.
func (s *Server) Table() []Line {
	var lines []Line
	for _, r := range s.routes.all {
		lines = append(lines, Line{
			Method: r.method, Template: r.template, Anyone: r.access == anyone, AdminsOnly: r.access == adminsOnly,
			Ollama: r.ollama(), Counted: r.counted, OpenAI: r.family == 1, Upstream: r.upstream,
		})
	}
	return lines
}
