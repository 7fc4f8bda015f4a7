package server

import (
	"net/http/pprof"
	"net/url"
	runtime "runtime/pprof"
	"strconv"

	"ollama-api-service/internal/api"
)

// maxProfile bounds how long one request can record the CPU or the execution trace, in seconds: recording slows every request.
const maxProfile = 60

// profile answers with what the Go runtime records of this process: goroutines, heap, CPU. Only admins get it, and only from this
// machine, because a recording costs CPU and a dump shows what the process does. Stacks hold addresses of memory, never its content.
func (s *Server) profile(x *exchange) error {
	if !x.fromHere() {
		return api.Errorf(api.CodeForbidden, "profiles are only served to this machine: connect from it to its loopback address, without a proxy in between")
	}
	if err := checkSeconds(x.r.URL); err != nil {
		return err
	}
	switch x.param {
	case "profile":
		pprof.Profile(x, x.r)
	case "trace":
		pprof.Trace(x, x.r)
	default:
		if runtime.Lookup(x.param) == nil {
			return api.Errorf(api.CodeNotFound, "there is no such profile: goroutine, heap, allocs, block, mutex, threadcreate, profile and trace exist")
		}
		pprof.Handler(x.param).ServeHTTP(x, x.r)
	}
	return nil
}

func checkSeconds(u *url.URL) error {
	text := u.Query().Get("seconds")
	if text == "" {
		return nil
	}
	if n, err := strconv.Atoi(text); err != nil || n < 1 || n > maxProfile {
		return api.Errorf(api.CodeBadRequest, "seconds must be a number from 1 to %d", maxProfile)
	}
	return nil
}
