#!/usr/bin/env bash
# Finds missing programs. "scripts/setup.sh missing [demo|lint|test]" prints the Debian packages that are not installed, so that
# apt-get install -y $(scripts/setup.sh missing) installs them. Other scripts source this file for the functions below.

packages_txt=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/packages.txt

# there SHOWN-BY: reports whether the command, file or Python module is on this machine.
there() {
  local python
  case $1 in
  /*) [ -f "$1" ] ;;
  python:*)
    # Debian's own Python, which has Debian's modules and which the tests use. Another Python earlier in PATH may differ.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    "$python" -c "import ${1#python:}" >/dev/null 2>&1
    ;;
  *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

# missing [demo|lint|test]: prints the missing packages for the demo, the linters or everything (test).
missing() {
  local need=${1:-test} package for shown_by _
  while read -r package for shown_by _; do
    case $package in '' | '#'*) continue ;; esac
    case $need in "$for" | test) there "$shown_by" || echo "$package" ;; esac
  done <"$packages_txt" | sort -u | paste -sd' '
}

# ready [demo|lint|test]: fails if a package is missing, and names the missing ones.
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

# progress WHAT COMMAND...: runs the command, and prints the elapsed time every PROGRESS_EVERY (15) seconds. On a machine with empty
# caches the go command and npm print nothing for minutes.
progress() {
  local what=$1 start=$SECONDS ticker status=0
  shift
  (
    pause=''
    trap 'kill "$pause" 2>/dev/null; exit' TERM
    while :; do
      sleep "${PROGRESS_EVERY:-15}" >/dev/null 2>&1 & # a sleep that outlives the script must not hold its output pipe open
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

# ollama_there: adds Go's bin directory to PATH, and builds Ollama if there is none in PATH.
ollama_there() {
  local gobin
  gobin=$(go env GOBIN)
  [ -n "$gobin" ] || gobin=$(go env GOPATH)/bin
  export PATH="$gobin:$PATH"
  command -v ollama >/dev/null 2>&1 && return
  echo "   go install github.com/ollama/ollama@v0.6.5: about two minutes on two cores, once"
  CGO_ENABLED=1 progress "building Ollama" go install github.com/ollama/ollama@v0.6.5
}

# empty_home DIRECTORY: uses DIRECTORY as an empty HOME, without caches and programs. It keeps only the settings of Go and npm that
# tell how to reach the registries, as environment variables.
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
  # PATH keeps only system directories, because the caller's own programs, such as an Ollama that is already built, are in its home.
  for name in go node; do
    value=$(command -v "$name" 2>/dev/null) && path=$path$(dirname "$value"):
  done
  export PATH="${path}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  unset GOENV GOROOT OLLAMA_MODELS OLLAMA_HOST npm_config_userconfig npm_config_prefix \
    XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_RUNTIME_DIR
  export HOME=$home GOPATH=$home/go GOMODCACHE=$home/go/pkg/mod GOBIN=$home/go/bin GOCACHE=$home/.cache/go-build \
    npm_config_cache=$home/.npm
  # Git refuses to read another user's checkout unless its configuration allows it.
  export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$PWD
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case ${1:-}:${2:-test} in
  missing:demo | missing:lint | missing:test) missing "${2:-test}" ;;
  *) echo "usage: scripts/setup.sh missing [demo|lint|test]" >&2; exit 2 ;;
  esac
fi
