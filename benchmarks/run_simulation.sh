#!/usr/bin/env bash
# The search instrument's part of the evidence: models, the grid on two workers at the lowest priority, tables, figures.
# A task is 30 points x 5 seeds of 400 steps: about three hours on two cores; the workers' logs say how much is left.
# Interrupt it at any time: finished points are kept. Add seeds or methods to the grid and run it again.
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
for worker in $(seq 0 $((WORKERS - 1))); do
  # shellcheck disable=SC2086 # TASKS is a list
  "$PYTHON" -m benchmarks.grid --assets "$ASSETS" --out "$OUT" --tasks $TASKS --seeds "$SEEDS" \
    --first-seed "$FIRST_SEED" ${POINTS:+--points $POINTS} --shard "$worker/$WORKERS" >>"$OUT/worker_$worker.log" 2>&1 &
done
wait # for each in turn would stop at the first failure; the logs have it, and analyse leaves incomplete seeds out
[[ ${ANALYSE:-yes} == no ]] || "$PYTHON" -m benchmarks.analyse --results "$OUT" --document docs/results.md --figures docs/figures
