#!/usr/bin/env bash
# The checks and the tests. Each argument is one of the groups below; without an argument all but "long" run. A group that fails does not
# stop the others, so that one run shows all failures. The script installs what needs no root, and names the rest.
#
#   check   format, linters, word list, and the tests with -short and Go's test cache: between two edits
#   lint    check without tests, other modules, six platforms, dead code, known vulnerabilities, the check of the binary
#   race    all tests except e2e, with -race
#   e2e     the built binary with a real Ollama and real clients, with -race
#   fuzz    3,000 inputs for each fuzz target
#   deploy  packages, image, unit, compose file
#   long    the statistical tests: more traces, faults, adversarial requests and inputs
#
# If another script sources this file, it only defines its functions; scripts_test.go tests them in this way.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

export GOTOOLCHAIN="${GOTOOLCHAIN:-local}"
failed=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' red='' green='' plain=''; fi

# step NAME COMMAND...: runs the command and continues if it fails, so that one run shows all failures.
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

# golangci-lint has a module file of its own, because it has ten times the dependencies of the other tools.
golangci() { CGO_ENABLED=0 go tool -modfile=tools/golangci.mod golangci-lint run --show-stats=false ./...; }

# nothing COMMAND...: fails if the command fails or prints anything on standard output, where linters write their findings.
# Output on standard error does not count: with an empty module cache the go command writes "go: downloading ..." there.
nothing() {
  local out status=0
  out=$("$@") || status=$?
  [ -z "$out" ] || { echo "$out"; return 1; }
  return "$status"
}

# modules: the folders of the Go modules of this repository.
modules() { find . -name go.mod -not -path '*/node_modules/*' -not -path './.git/*' -exec dirname {} \;; }

# Download the modules first, so that a slow network is visible as such and not as a slow linter.
downloads() {
  local module
  for module in $(modules); do (cd "$module" && go mod download) || return 1; done
}

formatted() {
  local files
  mapfile -t files < <(find . -name '*.go' -not -path '*/node_modules/*' -not -path './.git/*')
  nothing tool gofumpt -l "${files[@]}" || { echo "   make fmt formats them"; return 1; }
}

# The Go client of the tests is a module of its own, so that the program has no dependency on Ollama.
go_client() {
  (cd e2e/clients/go && go vet ./... && CGO_ENABLED=0 go tool -modfile=../../../tools/go.mod staticcheck ./... && nothing go mod tidy -diff)
  # Not ./..., because npm packages are in the same directory.
  (cd e2e/clients/streams && go vet . && CGO_ENABLED=0 go tool -modfile=../../../tools/go.mod staticcheck . && nothing go mod tidy -diff &&
    nothing go mod tidy -modfile=newest.mod -diff)
}

# The ACME server of the tests is a module of its own too.
acme_module() {
  (cd e2e/acme && nothing go mod tidy -diff)
}

# The tests that compare our reading of bodies with Ollama's are a module of their own too.
bodies() {
  (cd e2e/bodies && go vet ./... && CGO_ENABLED=0 go tool -modfile=../../tools/go.mod staticcheck ./... && nothing go mod tidy -diff && go test -count=1 ./...)
}

# The tools that make packages and images are a module of their own too, so that the program does not depend on them.
deploy_module() {
  (cd deploy && go vet ./... && CGO_ENABLED=0 go tool -modfile=../tools/go.mod staticcheck ./... && nothing go mod tidy -diff)
}

# These tests install the packages in a copy of the machine and start them under systemd, which needs root. Without -race, because
# compression is ten times slower with it and not concurrent.
deployment() {
  local all=()
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, because they need root: the tests that install the packages and run the image"
    all=(-skip '^TestInASystem')
  fi
  (cd deploy && go test -count=1 -timeout 30m "${all[@]}" ./...)
}

# Use the public vulnerability database if it answers, and otherwise the snapshot in tools/.
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

# Build and vet the program and its tests for every platform of the release; e2e, bench and attack need Linux. The flags are those of the
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

# The lock files must work with every registry.
locks_name_no_registry() {
  local locks
  mapfile -t locks < <(git ls-files '*package-lock.json')
  [ ${#locks[@]} -gt 0 ] && ! grep -n '"resolved"' "${locks[@]}"
}

# packages_there DIRECTORY [COMMAND...]: installs the packages of its lock file unless they are installed. COMMAND is npm's, by default ci.
packages_there() {
  local command=("${@:2}")
  (cd "$1" && if [ -d node_modules ] && [ node_modules -nt package-lock.json ]; then exit 0; fi
    npm "${command[@]:-ci}" --no-audit --no-fund --loglevel=error && touch node_modules)
}

# memory_cgroup: reports whether a memory cgroup can be made where e2e/cgroup_test.go makes one: below that of this process, or below the root.
memory_cgroup() {
  local at group
  for at in $(sed -nE 's,^[0-9]+:([^:]*\,)?memory(\,[^:]*)?:,/sys/fs/cgroup/memory,p; s,^0::,/sys/fs/cgroup,p' /proc/self/cgroup) /sys/fs/cgroup/memory /sys/fs/cgroup; do
    group=$at/ollama-api-service-$$
    mkdir "$group" 2>/dev/null || continue
    if [ -e "$group/memory.max" ] || [ -e "$group/memory.limit_in_bytes" ]; then
      rmdir "$group"
      return 0
    fi
    rmdir "$group"
  done
  return 1
}

short_tests() { go test -short $(go list ./... | grep -v /e2e); }

# race_tests PACKAGE...: runs tests with -race. -count=1, because the tests start programs, and the test cache does not notice changes
# of these. -parallel 8, because parallel tests here mostly wait.
race_tests() {
  local all=() pid status
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, because they need root to mount a small disk and to trace another program: TestChaosDiskFull, TestChaosFsyncFails"
    echo "   NOT RUN, because it needs root to make a memory cgroup: TestMemoryCgroup"
    all=(-skip '^TestChaos(DiskFull|FsyncFails)$|^TestMemoryCgroup$')
  elif ! memory_cgroup; then
    echo "   NOT RUN, because this machine has no memory cgroup of version 1 or 2: TestMemoryCgroup"
    all=(-skip '^TestMemoryCgroup$')
  fi
  CGO_ENABLED=1 go test -race -count=1 -parallel 8 -timeout 45m -v "${all[@]}" "$@" >"$work/tests" 2>&1 &
  pid=$!
  tail -n +1 -f --pid=$pid "$work/tests" | grep --line-buffered -vE '^=== (RUN|PAUSE|CONT|NAME)'
  wait $pid
  status=$?
  echo
  echo "   $(grep -cE '^--- PASS' "$work/tests") tests and $(grep -cE '^ +--- PASS' "$work/tests") parts of tests passed, $(grep -cE '^ *--- FAIL' "$work/tests") failed"
  echo "   the ten slowest:"
  slowest "$work/tests"
  if grep -E '^ *--- SKIP' "$work/tests"; then
    echo "   a skipped test proves nothing"
    status=1
  fi
  [ $status -eq 0 ] || grep -E '^(--- FAIL|FAIL|panic:)' "$work/tests" | sed 's/^/   /'
  return $status
}

# Tests whose size is a parameter: -everything runs all traces of the simulator, -rounds is the number of kills, -fleet-requests the
# number of requests of the fleet.
long_tests() {
  go test -count=1 -timeout 30m ./internal/sched -run '^TestSimulation$' -everything &&
    go test -count=1 -timeout 2h -v -run '^Test(Chaos|Fleet)' ./e2e -rounds "${ROUNDS:-200}" -fleet-requests 10000 &&
    bash scripts/fuzz.sh "${INPUTS:-100000}"
}

# slowest FILE: prints the ten slowest tests and the five slowest packages in the output of go test -v.
slowest() {
  sed -nE 's/^--- [A-Z]+: ([^ ]+) \(([0-9.]+)s\)$/\2 \1/p' "$1" | sort -rn | head -10 | awk '{ printf "   %8.1f s  %s\n", $1, $2 }'
  sed -nE 's/^(ok|FAIL)[ \t]+([^ \t]+)[ \t]+([0-9.]+)s.*/\3 \2/p' "$1" | sort -rn | head -5 | awk '{ printf "   %8.1f s  %s\n", $1, $2 }'
}

if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi

groups=("$@")
[ $# -gt 0 ] || groups=(lint race e2e fuzz deploy)
for group in "${groups[@]}"; do
  case $group in
  check | lint) need=lint ;;
  race | e2e | fuzz | deploy | long) need=test ;;
  *) echo "no group $group: check, lint, race, e2e, fuzz, deploy and long exist" >&2; exit 2 ;;
  esac
  ready $need || exit 1
done
wanted() { [[ " ${groups[*]} " == *" $1 "* ]]; }

wanted check || wanted lint && step "formatted (gofumpt)" formatted
wanted check || wanted lint && step "linters (golangci-lint)" golangci
wanted check || wanted lint && step "plain words" bash scripts/words.sh
wanted check && step "short tests" short_tests
if wanted lint; then
  step "Go modules" downloads
  step "the Go client of the tests" go_client
  step "the module of e2e/acme/" acme_module
  step "the module of e2e/bodies/" bodies
  step "the module of deploy/" deploy_module
  step "builds and is vetted for every platform" platforms
  step "no dead code (deadcode)" nothing go tool -modfile=tools/go.mod deadcode -test ./...
  step "no known vulnerabilities (govulncheck)" vulnerabilities
  step "no reachable reflect Method in the binary" no_reflect_method
  step "npm lock files name no registry" locks_name_no_registry
fi
if wanted e2e || wanted long; then
  step "a real Ollama" ollama_there
  step "npm clients" packages_there e2e/clients
  # Not ci, because it requires the packages of all other platforms in the lock file, and a registry may lack them.
  step "npm agents (1.2 GB)" packages_there e2e/agents install --no-save
  step "npm readers of streams" packages_there e2e/clients/streams
  step "npm packages of the documentation pages" packages_there e2e/pages
fi
if wanted race && wanted e2e; then
  step "all tests, with -race" race_tests ./... # in one run, so that e2e, which mostly waits, runs in parallel with the others
elif wanted race; then
  # shellcheck disable=SC2046 # one word for each package
  step "tests, with -race" race_tests $(go list ./... | grep -v /e2e)
elif wanted e2e; then
  step "e2e, with -race" race_tests ./e2e
fi
wanted fuzz && step "fuzzing, short" bash scripts/fuzz.sh 3000
wanted deploy && step "packages, image, unit, compose file" deployment
wanted long && step "the statistical tests" long_tests

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "${red}${bold}FAILED${plain}, ${#failed[@]} of the checks in $SECONDS s:"
  printf '  - %s\n' "${failed[@]}"
  exit 1
fi
echo "${green}${bold}All checks passed${plain} in $SECONDS s."
