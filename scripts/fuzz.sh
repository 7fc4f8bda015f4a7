#!/usr/bin/env bash
# Runs every fuzz target with new inputs: fuzz.sh [INPUTS], by default 1,000,000 each. Go stores an input that fails under
# testdata/fuzz, where it is a test from then on. From 100,000 inputs on, the script also runs all cases of which "make test" runs a
# part: every fault of the table of faults, and INPUTS changed requests to the built program. It connects only to 127.0.0.1.
set -uo pipefail
cd "$(dirname "$0")/.."

export GOTOOLCHAIN="${GOTOOLCHAIN:-local}"
inputs=${1:-1000000}
case $inputs in '' | *[!0-9]*) echo "fuzz.sh takes a number of inputs, not \"$inputs\"." >&2; exit 2 ;; esac

failed=()
work=$(mktemp -d)
log=$work/log
trap 'rm -rf "$work"' EXIT

# try NAME FIGURES COMMAND...: runs the command, prints the last match of the pattern FIGURES in its output, and fails if it fails.
try() {
  local name=$1 figures=$2 start=$SECONDS
  shift 2
  printf '%-32s ' "$name"
  if "$@" >"$log" 2>&1; then
    echo "ok ($((SECONDS - start)) s) $(grep -o "$figures" "$log" | tail -n 1)"
  else
    echo "FAILED"
    sed 's/^/    /' "$log"
    failed+=("$name")
    return 1
  fi
}

# instrumented DIRECTORY: builds the tests there once for all of their targets, as the program $work/tests.
instrumented() { (cd "$1" && go test -c -vet=off -fuzz . -o "$work/tests" .); }

# target DIRECTORY NAME: Minimising an input that is new but does not fail may take a minute, and nothing else runs meanwhile. So limit it.
target() {
  (cd "$1" && "$work/tests" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "${inputs}x" -test.fuzzminimizetime 5x \
    -test.fuzzcachedir "$(go env GOCACHE)/fuzz/$(go list)")
}

for directory in $(git ls-files '*_test.go' | xargs grep -l '^func Fuzz' | xargs -n 1 dirname | sort -u); do
  try "$directory" 'x^' instrumented "$directory" || continue
  for name in $(grep -ho '^func Fuzz[A-Za-z]*' "$directory"/*_test.go | sed 's/func //'); do
    try "$name" 'execs: [0-9]*' target "$directory" "$name"
  done
done

if [ "$inputs" -ge 100000 ]; then
  FAULTS=all try TestAnswerThatBreaksAtEveryByte '[0-9]* faults.*' \
    go test -count=1 -timeout 60m -v -run '^TestAnswerThatBreaksAtEveryByte$' ./internal/server
  try TestChangedRequests '[0-9]* requests,.*' go test -count=1 -timeout 60m -v -run '^TestChangedRequests$' ./e2e -mutations "$inputs"
fi

[ ${#failed[@]} -eq 0 ] || { echo "Failed: ${failed[*]}" >&2; exit 1; }
