#!/usr/bin/env bash
# What a bare machine lacks. "scripts/setup.sh missing [demo|lint|test]" prints the Debian packages that are not there, so that
# apt-get install -y $(scripts/setup.sh missing) installs them. Sourced, it gives the functions below to other scripts.

packages_txt=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/packages.txt

# there SHOWN-BY: reports whether what shows a package is on this machine.
there() {
  local python
  case $1 in
  /*) [ -f "$1" ] ;;
  python:*)
    # Debian's own, which is what has Debian's modules. Another Python earlier in PATH may have them and not be there for the tests.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    "$python" -c "import ${1#python:}" >/dev/null 2>&1
    ;;
  *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

# missing [demo|lint|test]: the packages that the demo, the linters or everything (test) needs and that are not there.
missing() {
  local need=${1:-test} package for shown_by _
  while read -r package for shown_by _; do
    case $package in '' | '#'*) continue ;; esac
    case $need in "$for" | test) there "$shown_by" || echo "$package" ;; esac
  done <"$packages_txt" | sort -u | paste -sd' '
}

# ready [demo|lint|test]: names what is missing, and fails if anything is.
ready() {
  local packages
  if ! command -v go >/dev/null 2>&1; then
    echo "Go 1.26 or newer is missing. Install it from https://go.dev/dl/ and put its bin directory in PATH." >&2
    return 1
  fi
  packages=$(missing "$1")
  [ -z "$packages" ] && return
  echo "Debian packages are missing. As root, on Debian or Ubuntu: apt-get install -y $packages" >&2
  return 1
}

# progress WHAT COMMAND...: runs the command, and prints every PROGRESS_EVERY (15) seconds how long it runs already. The first
# build of a machine with empty caches takes minutes in which the go command and npm print nothing.
progress() {
  local what=$1 start=$SECONDS ticker status=0
  shift
  (
    pause=''
    trap 'kill "$pause" 2>/dev/null; exit' TERM
    while :; do
      sleep "${PROGRESS_EVERY:-15}" >/dev/null 2>&1 & # its own output: a sleep that is left over must not hold a pipe open
      pause=$!
      wait "$pause"
      echo "   ... $what: $((SECONDS - start)) s"
    done
  ) &
  ticker=$!
  "$@" || status=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  return "$status"
}

# ollama_there: puts the ollama of Go's bin directory in PATH, and builds it first if there is none at all.
ollama_there() {
  local gobin
  gobin=$(go env GOBIN)
  [ -n "$gobin" ] || gobin=$(go env GOPATH)/bin
  export PATH="$gobin:$PATH"
  command -v ollama >/dev/null 2>&1 && return
  echo "   go install github.com/ollama/ollama@v0.6.5: about two minutes on two cores, once"
  CGO_ENABLED=1 progress "building Ollama" go install github.com/ollama/ollama@v0.6.5
}

# empty_home DIRECTORY: makes it the home, with everything a home may hold, caches and programs, absent. Only what says how to
# reach the registries is carried over, as environment, from wherever Go and npm have it.
empty_home() {
  local home=$1 name value path=
  for name in GOPROXY GOSUMDB GOPRIVATE GONOPROXY GONOSUMDB GOINSECURE GOFLAGS; do
    value=$(go env "$name")
    [ -z "$value" ] || export "$name=$value"
  done
  if command -v npm >/dev/null 2>&1; then
    for name in registry proxy https-proxy noproxy cafile strict-ssl; do
      value=$(npm config get "$name" 2>/dev/null) || continue
      case $value in '' | null | undefined) ;; *) export "npm_config_${name//-/_}=$value" ;; esac
    done
  fi
  # Programs of the caller, such as an Ollama that is already built, are in its home; those of the system are not.
  for name in go node; do
    value=$(command -v "$name" 2>/dev/null) && path=$path$(dirname "$value"):
  done
  export PATH="${path}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  unset GOENV GOROOT OLLAMA_MODELS OLLAMA_HOST npm_config_userconfig npm_config_prefix \
    XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_RUNTIME_DIR
  export HOME=$home GOPATH=$home/go GOMODCACHE=$home/go/pkg/mod GOBIN=$home/go/bin GOCACHE=$home/.cache/go-build \
    npm_config_cache=$home/.npm
  # Git refuses to read a checkout of another user unless its home allows it.
  export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$PWD
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case ${1:-}:${2:-test} in
  missing:demo | missing:lint | missing:test) missing "${2:-test}" ;;
  *) echo "usage: scripts/setup.sh missing [demo|lint|test]" >&2; exit 2 ;;
  esac
fi
