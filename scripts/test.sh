#!/usr/bin/env bash
# The checks and the tests. Each argument is one of the groups below; without an argument all but "long" run. A group that fails does not
# stop the others, so that one run shows all failures. The script installs what needs no root, and names the rest.
#
#   check   format, linters, word list, and the tests with -short and Go's test cache: between two edits
#   lint    check without tests, other modules, six platforms, dead code, known vulnerabilities, the check of the binary
#   race    all tests except e2e, with -race, except long computations
#   e2e     the built binary with a real Ollama and real clients; runs at the same time as the others, because it waits a lot
#   fuzz    3,000 inputs for each fuzz target
#   deploy  packages, image, unit, compose file
#   long    the statistical tests: more traces, faults, adversarial requests and inputs
#
# If another script sources this file, it only defines its functions; scripts_test.go tests them in this way.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh

# All groups compile with the flags of the release, so that a package is compiled once for all that run it without -race.
export GOTOOLCHAIN="${GOTOOLCHAIN:-local}" GOFLAGS="$(go env GOFLAGS) -trimpath -tags=grpcnotrace"
failed=()
work=$(mktemp -d)
tests='' tests_pid='' e2e_tests='' e2e_pid=''
trap 'for group in $tests_pid $e2e_pid; do kill -- "-$group" 2>/dev/null; done; rm -rf "$work"' EXIT

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' red='' green='' plain=''; fi

# step NAME COMMAND...: runs the command and continues if it fails, so that one run shows all failures.
step() {
  local name=$1 start=$SECONDS cpu took
  shift
  cpu_seconds cpu
  echo "${bold}== $name${plain}"
  progress "$name" "$@"
  local status=$?
  took=$cpu
  cpu_seconds cpu
  took="$((SECONDS - start)) s, $((cpu - took)) s of CPU"
  if [ $status -eq 0 ]; then
    echo "${green}   ok${plain} ($took)"
  else
    echo "${red}   FAILED${plain}: $name ($took)"
    failed+=("$name")
  fi
}

# cpu_seconds VARIABLE: stores how much CPU time the programs have used that this shell started and that have ended.
cpu_seconds() {
  local minutes seconds total=0 time
  times >"$work/times" # not through a pipe, because a subshell has times of its own
  for time in $(tail -n 1 "$work/times"); do
    minutes=${time%m*} seconds=${time#*m}
    total=$((total + minutes * 60 + ${seconds%%[.,]*}))
  done
  printf -v "$1" %d "$total"
}

tool() { CGO_ENABLED=0 go tool -modfile=tools/go.mod "$@"; }

# golangci_lint DIRECTORY: runs the linters on the module there. golangci-lint has a module file of its own, because it has ten times the
# dependencies of the other tools.
golangci_lint() {
  local binary
  binary=$(CGO_ENABLED=0 go tool -n -modfile=tools/golangci.mod golangci-lint) && (cd "$1" && CGO_ENABLED=0 "$binary" run --show-stats=false ./...)
}

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

# The modules of the tests: the clients in Go, so that the program has no dependency on Ollama; the ACME server; the tests that compare our
# reading of bodies with Ollama's. They are only vetted, because other linters would read all of Ollama.
modules_of_tests() {
  # Not ./..., because npm packages are in the directory of the streams.
  (cd e2e/clients/go && go vet . && nothing go mod tidy -diff) &&
    (cd e2e/clients/streams && go vet . && nothing go mod tidy -diff && nothing go mod tidy -modfile=newest.mod -diff) &&
    (cd e2e/acme && nothing go mod tidy -diff) &&
    (cd e2e/bodies && go vet . && nothing go mod tidy -diff && go test -vet=off -count=1 .)
}

# The tools that make packages and images are a module of their own too, so that the program does not depend on them.
deploy_module() { golangci_lint deploy && (cd deploy && nothing go mod tidy -diff); }

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
  CGO_ENABLED=0 go build -ldflags=-dumpdep -o "$work/binary" ./cmd/ollama-api-service >"$work/dumpdep" 2>&1 ||
    { grep -av -- ' -> ' "$work/dumpdep" | tail -20; return 1; }
  found=$(grep -a '<ReflectMethod>' "$work/dumpdep" | sed 's/ *<ReflectMethod>.*//' | sort -u)
  [ -z "$found" ] || { echo "   these make the linker keep every method:"; echo "$found"; return 1; }
}

# Build the program for every platform of the release, and vet it and its tests for the systems other than this one; e2e, bench and attack
# need Linux. golangci-lint vets this system, and no file is for one architecture only. The tests of deploy/ build all platforms too.
platforms() {
  local platform system vetted=" $(go env GOOS) "
  for platform in $(sed -n 's/^PLATFORMS := //p' Makefile); do
    system=${platform%/*}
    if [[ $vetted != *" $system "* ]]; then
      vetted+="$system "
      on "$platform" vet ./cmd/... ./internal/... ./web/... || return 1
    fi
    wanted deploy || on "$platform" build -o "$work/${platform/\//-}/" ./cmd/... ./internal/... ./web/... || return 1
  done
}

# on SYSTEM/ARCHITECTURE COMMAND...: runs a go command for that platform.
on() { CGO_ENABLED=0 GOOS=${1%/*} GOARCH=${1#*/} go "${@:2}" || { echo "   $1: go $2 failed"; return 1; }; }

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

short_tests() { go test -vet=off -short $(go list ./... | grep -v /e2e); }

# begin_tests DIRECTORY ARGUMENT...: starts go test in the background, with its output in the file $tests. -count=1, because the tests start
# programs, and the test cache does not notice changes of these. -vet=off, because golangci-lint vets.
begin_tests() {
  tests=$(mktemp "$work/tests.XXXXXX")
  set -m # a process group of its own, which ends with this script
  (cd "$1" && exec go test -vet=off -count=1 -timeout 45m -v "${@:2}" >"$tests" 2>&1 </dev/null) &
  set +m
  tests_pid=$!
}

# end_tests FILE PID: shows the tests that begin_tests began, and fails if one has failed or was skipped.
end_tests() {
  local status=0
  tail -n +1 -f --pid="$2" "$1" | grep --line-buffered -vE '^=== (RUN|PAUSE|CONT|NAME)'
  wait "$2" || status=$?
  echo
  echo "   $(grep -cE '^--- PASS' "$1") tests and $(grep -cE '^ +--- PASS' "$1") parts of tests passed, $(grep -cE '^ *--- FAIL' "$1") failed"
  if grep -E '^ *--- SKIP' "$1"; then
    echo "   a skipped test proves nothing"
    status=1
  fi
  [ $status -eq 0 ] || grep -E '^(--- FAIL|FAIL|panic:)' "$1" | sed 's/^/   /'
  return $status
}

# -parallel 8, because parallel tests here mostly wait. FAULTS=some, because the complete table of faults runs without -race.
race_tests() {
  # shellcheck disable=SC2046 # one word for each package
  FAULTS=some CGO_ENABLED=1 begin_tests . -race -parallel 8 -skip "^($computing)\$" $(go list ./... | grep -v /e2e)
  end_tests "$tests" $tests_pid
}

# Simulations of many requests, readers of long texts, and sums of many rows. -race would make them ten times as slow, and the other tests of
# their packages run the same code with it.
computing='TestChangesOnPurposeCostOthersLittle|TestSimulation|TestLongPromptsPayForTheSlotsThatTheyStop|TestReloadsAreNotInOthersTime'
computing+='|TestReadingMemory|TestReadingNamesTakesNoMoreThanIsCounted|TestMeter(|StripsUsage|EchoesTheAlias)AtEverySplit|TestRequestsPageByPage|TestUsageOfAnEarlierVersion|TestRetention'

computing_tests() {
  begin_tests . -run "^($computing|TestAnswerThatBreaksAtEveryByte)\$" ./internal/sched ./internal/dialect ./internal/store ./internal/server
  end_tests "$tests" $tests_pid
}

# Without -race, because the tests are clients of programs: the detector would see only the tests.
begin_e2e() {
  local all=()
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, because they need root to mount a small disk and to trace another program: TestChaosDiskFull, TestChaosFsyncFails"
    echo "   NOT RUN, because it needs root to make a memory cgroup: TestMemoryCgroup"
    all=(-skip '^TestChaos(DiskFull|FsyncFails)$|^TestMemoryCgroup$')
  elif ! memory_cgroup; then
    echo "   NOT RUN, because this machine has no memory cgroup of version 1 or 2: TestMemoryCgroup"
    all=(-skip '^TestMemoryCgroup$')
  fi
  begin_tests . -parallel 3 "${all[@]}" ./e2e # more would fill the machine, and time limits would end what waits
  e2e_tests=$tests e2e_pid=$tests_pid
}

# These tests install the packages in a copy of the machine and start them under systemd, which needs root. Without -race, because
# compression is ten times slower with it and not concurrent.
deploy_tests() {
  local all=()
  if [ "$(id -u)" != 0 ]; then
    echo "   NOT RUN, because they need root: the tests that install the packages and run the image"
    all=(-skip '^TestInASystem')
  fi
  begin_tests deploy "${all[@]}" ./...
  end_tests "$tests" $tests_pid
}

# Tests whose size is a parameter: -everything runs all traces of the simulator, -rounds is the number of kills, -fleet-requests the
# number of requests of the fleet, -hoarding how long a key floods the memory, -fits how often a model is fitted.
long_tests() {
  go test -count=1 -timeout 30m ./internal/sched -run '^TestSimulation$' -everything &&
    go test -count=1 -timeout 2h -v -run '^Test(Chaos|Fleet|MemoryCgroup|TheModelOfABackend)' ./e2e -rounds "${ROUNDS:-200}" -fleet-requests 10000 -hoarding 5s -fits 2 &&
    bash scripts/fuzz.sh "${INPUTS:-100000}"
}

# slowest FILE...: prints the ten slowest tests and the five slowest packages in the output of go test -v.
slowest() {
  cat "$@" | sed -nE 's/^--- [A-Z]+: ([^ ]+) \(([0-9.]+)s\)$/\2 \1/p' | sort -rn | head -10 | awk '{ printf "   %8.1f s  %s\n", $1, $2 }'
  cat "$@" | sed -nE 's/^(ok|FAIL)[ \t]+([^ \t]+)[ \t]+([0-9.]+)s.*/\3 \2/p' | sort -rn | head -5 | awk '{ printf "   %8.1f s  %s\n", $1, $2 }'
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

# What e2e needs comes first, so that its tests run at the same time as the other groups.
if wanted e2e || wanted long; then
  step "a real Ollama" ollama_there
  step "npm clients" packages_there e2e/clients
  # Not ci, because it requires the packages of all other platforms in the lock file, and a registry may lack them.
  step "npm agents (1.2 GB)" packages_there e2e/agents install --no-save
  step "npm readers of streams" packages_there e2e/clients/streams
  step "npm packages of the documentation pages" packages_there e2e/pages
fi
wanted e2e && begin_e2e
wanted check || wanted lint && step "formatted (gofumpt)" formatted
wanted check || wanted lint && step "linters (golangci-lint)" golangci_lint .
wanted check || wanted lint && step "plain words" bash scripts/words.sh
wanted check && step "short tests" short_tests
if wanted lint; then
  step "Go modules" downloads
  step "the modules of the tests" modules_of_tests
  step "the module of deploy/" deploy_module
  step "other platforms" platforms
  step "no dead code (deadcode)" nothing go tool -modfile=tools/go.mod deadcode -test ./...
  step "no known vulnerabilities (govulncheck)" vulnerabilities
  step "no reachable reflect Method in the binary" no_reflect_method
  step "npm lock files name no registry" locks_name_no_registry
fi
wanted race && step "tests, with -race" race_tests
wanted race && step "tests that compute, without -race" computing_tests
wanted fuzz && step "fuzzing, short" bash scripts/fuzz.sh 3000
wanted deploy && step "packages, image, unit, compose file" deploy_tests
wanted e2e && step "e2e" end_tests "$e2e_tests" "$e2e_pid"
wanted long && step "the statistical tests" long_tests
if ls "$work"/tests.* >/dev/null 2>&1; then
  echo
  echo "The slowest tests and packages:"
  slowest "$work"/tests.*
fi

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "${red}${bold}FAILED${plain}, ${#failed[@]} of the checks in $SECONDS s:"
  printf '  - %s\n' "${failed[@]}"
  exit 1
fi
echo "${green}${bold}All checks passed${plain} in $SECONDS s."
