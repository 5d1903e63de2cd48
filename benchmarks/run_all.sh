#!/usr/bin/env bash
# The whole evidence again, resumable: models, the search instrument's grid, its best points on fresh seeds, there also
# where countdown's questions are seen more often, the main points on the real stack, tables and figures. A task of the
# grid is 30 points x 5 seeds of some 2.3 minutes with both cores busy: about three hours on two cores, nine for three
# tasks; the fresh seeds take four. The real stack adds 20 to 30 minutes a run of 400 steps.
#
#   bash benchmarks/run_all.sh             everything
#   bash benchmarks/run_all.sh --subset    ten minutes: a few published points again on a new seed; each number must
#                                          fall into the interval that the published seeds predict
#   TASKS, SEEDS, WORKERS, POINTS (of the grid), FRESH_POINTS, OFTEN_POINTS, REAL_POINTS and REAL_SEEDS narrow it;
#   REAL_SEEDS=0 leaves verl out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-.venv/bin/python}
export ASSETS=${ASSETS:-data/benchmarks}
OUT=${OUT:-runs/evidence}
PUBLISHED=benchmarks/raw
FRESH_POINTS=${FRESH_POINTS:-grpo reference_kl/0.02 lookahead_age/64 snapshot/8 replay/6 whole_response/64
  lookahead_fraction/0.25 lookahead_fraction/0.75 position/middle position/suffix}
OFTEN_POINTS=${OFTEN_POINTS:-grpo reference_kl/0.02 reference_kl/0.05 entropy_bonus/0.01 lookahead_age/64 lookahead_age/128
  lookahead_kl/0.02 lookahead_kl/0.05 snapshot/8 replay/6 masked/64 whole_response/64}
REAL_POINTS=${REAL_POINTS:-grpo lookahead_age/64 snapshot/8 replay/6 masked/64}
REAL_SEEDS=${REAL_SEEDS:-3}
TASKS=${TASKS:-countdown chain_sum order}

if [[ ${1:-} == --subset ]]; then
  "$PYTHON" -m benchmarks.prepare --task countdown --out "$ASSETS/countdown"
  exec "$PYTHON" -m benchmarks.replicate --published "$PUBLISHED" --assets "$ASSETS" --out "$OUT/subset"
fi
[[ $# -eq 0 ]] || { echo "run_all.sh: unknown argument '$1'; the only one is --subset" >&2; exit 2; }

TASKS=$TASKS OUT=$OUT/sim ANALYSE=no bash benchmarks/run_simulation.sh
TASKS=countdown FIRST_SEED=100 POINTS=$FRESH_POINTS OUT=$OUT/fresh ANALYSE=no bash benchmarks/run_simulation.sh
TASKS="countdown_96 countdown_1200" FIRST_SEED=100 POINTS=$OFTEN_POINTS OUT=$OUT/fresh ANALYSE=no \
  bash benchmarks/run_simulation.sh
TASKS=countdown_96 FIRST_SEED=300 SEEDS=8 POINTS="grpo lookahead_kl/0.05 reference_kl/0.05 reference_kl/0.1" \
  OUT=$OUT/fresh ANALYSE=no bash benchmarks/run_simulation.sh
for part in sim fresh; do
  "$PYTHON" -m benchmarks.keep --results "$OUT/$part" --published "$PUBLISHED"
done
if ((REAL_SEEDS > 0)); then
  # shellcheck disable=SC2086 # lists
  "$PYTHON" -m benchmarks.real_stack --assets "$ASSETS" --out "$OUT/real" --tasks $TASKS --points $REAL_POINTS \
    --seeds "$REAL_SEEDS" --set samples=32
  "$PYTHON" -m benchmarks.keep --results "$OUT/real" --published "$PUBLISHED/real_stack"
  "$PYTHON" -m benchmarks.agreement --search "$OUT/sim" --real "$OUT/real" || echo "some numbers lie outside (above)"
fi
"$PYTHON" -m benchmarks.analyse --results "$PUBLISHED" --document docs/results.md --figures docs/figures
