#!/usr/bin/env bash
# Every fuzz target with new inputs: fuzz.sh [INPUTS], 1,000,000 each when nothing is said. What fails is kept under
# testdata/fuzz, and is a test from then on. Nothing but 127.0.0.1 is spoken to.
set -uo pipefail
cd "$(dirname "$0")/.."

export GOTOOLCHAIN="${GOTOOLCHAIN:-local}"
inputs=${1:-1000000}
case $inputs in '' | *[!0-9]*) echo "fuzz.sh takes a number of inputs, not \"$inputs\"." >&2; exit 2 ;; esac

failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while IFS=: read -r file target; do
  start=$SECONDS
  printf '%-26s ' "$target"
  # Minimising an input that is only new, not wrong, may take a minute in which nothing else runs.
  if (cd "$(dirname "$file")" && go test -run '^$' -fuzz "^$target\$" -fuzztime "${inputs}x" -fuzzminimizetime 5x .) >"$log" 2>&1; then
    echo "$inputs inputs, nothing wrong ($((SECONDS - start)) s)"
  else
    echo "FAILED"
    sed 's/^/    /' "$log"
    failed+=("$target")
  fi
done < <(git ls-files '*_test.go' | xargs grep -o '^func Fuzz[A-Za-z]*' | sed 's/func //')

# The table of faults, each of them once, where "make test" takes a part of it.
start=$SECONDS
if FAULTS=all go test -count=1 -timeout 60m -v -run '^TestAnswerThatBreaksAtEveryByte$' ./internal/server >"$log" 2>&1; then
  grep -o '[0-9]* faults.*' "$log"
  echo "nothing wrong ($((SECONDS - start)) s)"
else
  sed 's/^/    /' "$log"
  failed+=(TestAnswerThatBreaksAtEveryByte)
fi

[ ${#failed[@]} -eq 0 ] || { echo "Failed: ${failed[*]}" >&2; exit 1; }
