#!/usr/bin/env bash
# Everything that must hold: linters, known vulnerabilities, the check of the binary, and all tests, e2e included.
# "test.sh lint" stops before the tests. What can be installed without root is installed; the rest is named.
# Sourced, it only defines its functions; scripts_test.go tries them so.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

export GOTOOLCHAIN="${GOTOOLCHAIN:-local}"
failed=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' red='' green='' plain=''; fi

# step NAME COMMAND...: runs it, and goes on when it fails, so that one run shows all that is wrong.
step() {
  local name=$1 start=$SECONDS
  shift
  echo "${bold}== $name${plain}"
  if progress "$name" "$@"; then
    echo "${green}   ok${plain} ($((SECONDS - start)) s)"
  else
    echo "${red}   FAILED${plain}: $name ($((SECONDS - start)) s)"
    failed+=("$name")
  fi
}

tool() { CGO_ENABLED=0 go tool -modfile=tools/go.mod "$@"; }

# nothing COMMAND...: fails when the command fails or prints anything on standard output, where linters write their findings.
# Standard error is no finding: with an empty module cache the go command writes "go: downloading ..." there.
nothing() {
  local out status=0
  out=$("$@") || status=$?
  [ -z "$out" ] || { echo "$out"; return 1; }
  return "$status"
}

# modules: the folders of the Go modules of this repository.
modules() { find . -name go.mod -not -path '*/node_modules/*' -not -path './.git/*' -exec dirname {} \;; }

# The modules are downloaded first, so that a slow network shows here and not as a slow linter.
downloads() {
  local module
  for module in $(modules); do (cd "$module" && go mod download) || return 1; done
}

formatted() {
  local files
  mapfile -t files < <(find . -name '*.go' -not -path '*/node_modules/*' -not -path './.git/*')
  nothing tool gofumpt -l "${files[@]}" || { echo "   make fmt formats them"; return 1; }
}

# The Go client of the tests is a module of its own, so that nothing of Ollama comes into this one.
go_client() {
  (cd e2e/clients/go && go vet ./... && CGO_ENABLED=0 go tool -modfile=../../../tools/go.mod staticcheck ./... && nothing go mod tidy -diff)
  # Not ./...: packages of npm are next to it.
  (cd e2e/clients/streams && go vet . && CGO_ENABLED=0 go tool -modfile=../../../tools/go.mod staticcheck . && nothing go mod tidy -diff &&
    nothing go mod tidy -modfile=newest.mod -diff)
}

# So is the ACME server of the tests.
acme_module() {
  (cd e2e/acme && nothing go mod tidy -diff)
}

# So is what holds our reading of bodies against Ollama's.
bodies() {
  (cd e2e/bodies && go vet ./... && CGO_ENABLED=0 go tool -modfile=../../tools/go.mod staticcheck ./... && nothing go mod tidy -diff && go test -count=1 ./...)
}

# What makes packages and images is a module of its own too: none of it belongs into the program.
deploy_module() {
  (cd deploy && go vet ./... && CGO_ENABLED=0 go tool -modfile=../tools/go.mod staticcheck ./... && nothing go mod tidy -diff)
}

# The packages are installed, and started under systemd, in a copy of the machine, for which one must be root. Without -race: it is
# compression, ten times slower with it, and not concurrent.
deployment() {
  local all=()
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, for they need root: the tests that install the packages and run the image"
    all=(-skip '^TestInASystem')
  fi
  (cd deploy && go test -count=1 -timeout 30m "${all[@]}" ./...)
}

# The vulnerability database is the public one where it answers, and otherwise the snapshot next to the tools.
vulnerabilities() {
  local db=https://vuln.go.dev
  if curl -fsS --max-time 5 -o /dev/null "$db/index/db.json" 2>/dev/null; then
    echo "   database: $db"
  else
    mkdir -p "$work/vulndb" && tar -xzf tools/vulndb.tar.gz -C "$work/vulndb" || return 1
    db="file://$work/vulndb"
    echo "   database: the snapshot tools/vulndb.tar.gz ($(sed -n 's/.*"modified": *"\([^"]*\)".*/\1/p' "$work/vulndb/index/db.json")); vuln.go.dev does not answer"
  fi
  tool govulncheck -db "$db" ./...
}

# A reachable use of reflect's Method makes the linker keep every method of every type: 14 MB in this binary.
no_reflect_method() {
  local found
  CGO_ENABLED=0 go build -tags grpcnotrace -ldflags=-dumpdep -o "$work/binary" ./cmd/ollama-api-service >"$work/dumpdep" 2>&1 ||
    { grep -av -- ' -> ' "$work/dumpdep" | tail -20; return 1; }
  found=$(grep -a '<ReflectMethod>' "$work/dumpdep" | sed 's/ *<ReflectMethod>.*//' | sort -u)
  [ -z "$found" ] || { echo "   these make the linker keep every method:"; echo "$found"; return 1; }
}

# The program and its tests compile and are vetted for every platform of the release; e2e, bench and attack need Linux. With the flags of the
# release, so that one compilation serves both.
platforms() {
  local platform system arch action
  for platform in $(sed -n 's/^PLATFORMS := //p' Makefile); do
    system=${platform%/*} arch=${platform#*/}
    for action in vet "build -o $work/$system-$arch/"; do
      # shellcheck disable=SC2086 # two words
      CGO_ENABLED=0 GOOS=$system GOARCH=$arch go $action -trimpath -tags grpcnotrace ./cmd/... ./internal/... ./web/... ||
        { echo "   $platform: go $action failed"; return 1; }
    done
  done
}

# The lock files must work with any registry.
locks_name_no_registry() {
  local locks
  mapfile -t locks < <(git ls-files '*package-lock.json')
  [ ${#locks[@]} -gt 0 ] && ! grep -n '"resolved"' "${locks[@]}"
}

# packages_there DIRECTORY [COMMAND...]: installs what its lock file names, unless it is there. COMMAND is npm's: ci if none is given.
packages_there() {
  local command=("${@:2}")
  (cd "$1" && if [ -d node_modules ] && [ node_modules -nt package-lock.json ]; then exit 0; fi
    npm "${command[@]:-ci}" --no-audit --no-fund --loglevel=error && touch node_modules)
}

# -count=1: the tests start programs, and a cached result would not notice that they changed.
tests() {
  local all=()
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, for they need root, to mount a small disk and to trace another program: TestChaosDiskFull, TestChaosFsyncFails"
    all=(-skip '^TestChaos(DiskFull|FsyncFails)$')
  fi
  CGO_ENABLED=1 go test -race -count=1 -timeout 45m -v "${all[@]}" ./... >"$work/tests" 2>&1 &
  local pid=$! status
  tail -n +1 -f --pid=$pid "$work/tests" | grep --line-buffered -vE '^=== (RUN|PAUSE|CONT|NAME)'
  wait $pid
  status=$?
  echo
  echo "   $(grep -cE '^--- PASS' "$work/tests") tests and $(grep -cE '^ +--- PASS' "$work/tests") parts of tests passed, $(grep -cE '^ *--- FAIL' "$work/tests") failed"
  if grep -E '^ *--- SKIP' "$work/tests"; then
    echo "   a skipped test proves nothing"
    status=1
  fi
  [ $status -eq 0 ] || grep -E '^(--- FAIL|FAIL|panic:)' "$work/tests" | sed 's/^/   /'
  return $status
}

if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi

case ${1:-test} in lint) ready lint ;; *) ready test ;; esac || exit 1
step "Go modules" downloads
step "formatted (gofumpt)" formatted
step "go vet" go vet ./...
step "staticcheck" tool staticcheck ./...
step "the Go client of the tests" go_client
step "the module of e2e/acme/" acme_module
step "the module of e2e/bodies/" bodies
step "the module of deploy/" deploy_module
step "builds and is vetted for every platform" platforms
step "no dead code (deadcode)" nothing go tool -modfile=tools/go.mod deadcode -test ./...
step "no known vulnerabilities (govulncheck)" vulnerabilities
step "no reachable reflect Method in the binary" no_reflect_method
step "npm lock files name no registry" locks_name_no_registry
if [ "${1:-}" != lint ]; then
  step "a real Ollama" ollama_there
  step "npm clients" packages_there e2e/clients
  # Not ci, which wants the packages of all other platforms in the lock file; a registry need not have them.
  step "npm agents (1.2 GB)" packages_there e2e/agents install --no-save
  step "npm readers of streams" packages_there e2e/clients/streams
  step "npm packages of the documentation pages" packages_there e2e/pages
  step "tests, with -race" tests
  step "fuzzing, short" bash scripts/fuzz.sh 3000
  step "packages, image, unit, compose file" deployment
fi

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "${red}${bold}FAILED${plain}, ${#failed[@]} of the checks in $SECONDS s:"
  printf '  - %s\n' "${failed[@]}"
  exit 1
fi
echo "${green}${bold}All checks passed${plain} in $SECONDS s."
