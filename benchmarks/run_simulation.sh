#!/usr/bin/env bash
# The search instrument's part of the evidence: models, the grid on two workers at the lowest priority, tables, figures
# ($OUT/results.md). A task is 33 points x 5 seeds of 400 steps, 80 to 170 seconds each with both of two cores busy: two to
# four hours; the workers' logs say how much is left. Interrupt it at any time: finished points are kept. Add seeds or
# methods to the grid and run it again.
#
#   bash benchmarks/run_simulation.sh                      all tasks, five seeds
#   TASKS=countdown SEEDS=3 POINTS="grpo lookahead_age/64" bash benchmarks/run_simulation.sh
#   FIRST_SEED=100 ..                                      seeds from 100 on are fresh ones, to confirm what was found
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
ASSETS=${ASSETS:-data/benchmarks}
OUT=${OUT:-runs/sim}
TASKS=${TASKS:-countdown chain_sum order}
SEEDS=${SEEDS:-5}
FIRST_SEED=${FIRST_SEED:-0}
WORKERS=${WORKERS:-2}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # an interrupted grid leaves no worker behind

mkdir -p "$OUT"
for task in $TASKS; do
  nice -n 19 "$PYTHON" -m benchmarks.prepare --task "$task" --out "$ASSETS/$task"
done
workers=()
for worker in $(seq 0 $((WORKERS - 1))); do
  # shellcheck disable=SC2086 # TASKS is a list
  "$PYTHON" -m benchmarks.grid --assets "$ASSETS" --out "$OUT" --tasks $TASKS --seeds "$SEEDS" \
    --first-seed "$FIRST_SEED" ${POINTS:+--points $POINTS} --shard "$worker/$WORKERS" >>"$OUT/worker_$worker.log" 2>&1 &
  workers+=($!)
done
failed=()
for worker in "${!workers[@]}"; do
  wait "${workers[$worker]}" || failed+=("$OUT/worker_$worker.log") # the others go on
done
if ((${#failed[@]})); then
  tail -qn 1 "${failed[@]}" >&2
  echo "run_simulation.sh: some points are missing, see ${failed[*]}; the same command goes on" >&2
  exit 1
fi
[[ ${ANALYSE:-yes} == no ]] || "$PYTHON" -m benchmarks.analyse --results "$OUT" --document "$OUT/results.md" --figures "$OUT/figures"
