#!/usr/bin/env bash
# Every check, in its own environment: lint, format, types, fast tests, end-to-end runs on this machine's CPU.
#   bash scripts/check.sh          everything
#   bash scripts/check.sh --fast   all but the end-to-end runs
# SOUP_VENV names the environment's folder (default .venv). A failing stage does not stop the later ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast=false
for argument in "$@"; do
  case "$argument" in
    --fast) fast=true ;;
    *) echo "check.sh: unknown argument '$argument'; the only one is --fast" >&2; exit 2 ;;
  esac
done

venv=${SOUP_VENV:-.venv}
failed=()
times=()

# stage NAME COMMAND...: runs the command, remembers its time and whether it failed.
stage() {
  local name=$1 start=$SECONDS result=passed
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" || { result=FAILED; failed+=("$name"); }
  times+=("$(printf '%-12s %5ss  %s' "$name" "$((SECONDS - start))" "$result")")
}

finish() {
  printf '\n=== check.sh\n'
  printf '%s\n' "${times[@]}"
  if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}" >&2
    exit 1
  fi
}

stage install bash scripts/install.sh "$venv" cpu,test,examples
((${#failed[@]} == 0)) || finish # nothing else can run

python=$venv/bin/python
stage lint "$python" -m ruff check .
stage format "$python" -m ruff format --check .
stage types "$python" -m mypy soup_verl
# pytest exits with 5 when it finds no test: that is a failure here too.
stage tests "$python" -m pytest -m "not e2e" -n 2
# One worker where tests share runs, which it makes two at a time; a file a worker for the rest.
$fast || stage runs "$python" -m pytest -m "e2e and runs"
$fast || stage processes "$python" -m pytest -m "e2e and not runs" -n 2 --dist loadfile
finish
