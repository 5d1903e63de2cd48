#!/usr/bin/env bash
# The checks, in an environment of their own: lint, format, shell scripts, image recipe, types, fast tests, end-to-end
# runs on this machine's CPU.
#   bash scripts/check.sh          under 20 minutes on two cores
#   bash scripts/check.sh --all    also killed processes, a lost node, evaluation, every run script rehearsed, whole data
#                                  sets, limits of time and memory; CI runs this. 50 to 100 minutes on two cores with
#                                  nothing else running, by the machine (30 November and 1 December 2026)
#   bash scripts/check.sh --fast   without end-to-end runs: 4 to 8 minutes there
# SOUP_CHECK_MINUTES: long runs, which only --all makes, that have not begun by then are not made (the end of LAUNCHES in
# tests/e2e/runs.py, the least missed last), and their tests are skipped and listed. Unless it is set, all are made.
# SOUP_VENV names the environment's folder (default .venv). A failing stage does not stop the later ones.
# The sandbox's tests need namespaces, which a container may refuse: they are skipped then, which --all takes for a failure
# unless SOUP_SANDBOX_TESTS=optional.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extent=
for argument in "$@"; do
  case "$argument" in
    --fast | --all) extent=$argument ;;
    *) echo "check.sh: unknown argument '$argument'; expected --fast or --all" >&2; exit 2 ;;
  esac
done

if [[ $extent == --all ]]; then export SOUP_SANDBOX_TESTS=${SOUP_SANDBOX_TESTS:-required}; fi
venv=${SOUP_VENV:-.venv}
failed=()
times=()
if [[ -n ${SOUP_CHECK_MINUTES:-} ]]; then
  [[ $SOUP_CHECK_MINUTES =~ ^[0-9]+$ ]] ||
    { echo "check.sh: SOUP_CHECK_MINUTES=$SOUP_CHECK_MINUTES; expected a whole number of minutes" >&2; exit 2; }
  export SOUP_CHECK_UNTIL=$(($(date +%s) + 60 * SOUP_CHECK_MINUTES))
fi

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
mapfile -t shell < <(git ls-files '*.sh' .ci/run)
stage shell "$venv/bin/shellcheck" --shell=bash --external-sources "${shell[@]}"
stage docker "$venv/bin/hadolint" docker/Dockerfile
stage types "$python" -m mypy soup_verl benchmarks
# pytest exits with 5 when it finds no test: that is a failure here too.
stage tests "$python" -m pytest -m "not e2e" -n 2
# One worker where tests share runs, which it makes two at a time; a file a worker for the rest, the longest files first
# (tests/conftest.py).
case $extent in
  --fast) ;;
  --all)
    stage processes "$python" -m pytest -m "e2e and not runs" -n 2 --dist loadfile --no-loadscope-reorder --durations 20
    stage runs "$python" -m pytest -m "e2e and runs"
    ;;
  *) stage runs "$python" -m pytest -m "e2e and runs and not long" ;;
esac
finish
