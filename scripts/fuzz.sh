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
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# try NAME FIGURES COMMAND...: runs the command, and prints the last match of the pattern FIGURES in its output.
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
  fi
}

# Minimising an input that is new but does not fail may take a minute, and nothing else runs meanwhile. So limit it.
target() { cd "$1" && go test -run '^$' -fuzz "^$2\$" -fuzztime "${inputs}x" -fuzzminimizetime 5x .; }

while IFS=: read -r file name; do
  try "$name" 'execs: [0-9]*' bash -c "$(declare -f target); inputs=$inputs; target '$(dirname "$file")' $name"
done < <(git ls-files '*_test.go' | xargs grep -o '^func Fuzz[A-Za-z]*' | sed 's/func //')

if [ "$inputs" -ge 100000 ]; then
  FAULTS=all try TestAnswerThatBreaksAtEveryByte '[0-9]* faults.*' \
    go test -count=1 -timeout 60m -v -run '^TestAnswerThatBreaksAtEveryByte$' ./internal/server
  try TestChangedRequests '[0-9]* requests,.*' go test -count=1 -timeout 60m -v -run '^TestChangedRequests$' ./e2e -mutations "$inputs"
fi

[ ${#failed[@]} -eq 0 ] || { echo "Failed: ${failed[*]}" >&2; exit 1; }
