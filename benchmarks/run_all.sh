#!/usr/bin/env bash
# The whole evidence again, resumable: models, the search instrument's grid, its best points on fresh seeds, there also
# where countdown's questions are seen more often, the recipe's neighbours, the main points on the real stack, whether
# both instruments agree, tables and figures. Hours on two cores: 6 to 12 for the grid (33 points x 5 seeds x 3 tasks), 4
# to 6 for the fresh seeds, 2 to 4 for the neighbours (50 points x 3 tasks), 8 to 17 for all methods' best points on fresh
# seeds, 6 to 10 for the other domains, 15 to 23 for the real stack (45 runs of 400 steps), 1 for the agreement.
#
#   bash benchmarks/run_all.sh             everything
#   bash benchmarks/run_all.sh --subset    ten minutes: a few published points again on a new seed; each number must
#                                          fall into the interval that the published seeds predict
#   TASKS, SEEDS, WORKERS, POINTS (of the grid), FRESH_POINTS, OFTEN_POINTS, LONG_POINTS, HARD_POINTS, HARD_SIZES_POINTS,
#   HARD_FRESH_POINTS, HARD_ORDER_POINTS, NEIGHBOR_POINTS, TRANSFER (tasks of other domains), TRANSFER_POINTS,
#   HARD_TRANSFER_POINTS, HARD_TEXT_POINTS, HARD_TEXT_FRESH_POINTS, REAL_POINTS and REAL_SEEDS narrow it; REAL_SEEDS=0
#   leaves verl out, TRANSFER= the other domains.
#   What it finds takes the place of benchmarks/raw and of the tables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-.venv/bin/python}
export ASSETS=${ASSETS:-data/benchmarks}
OUT=${OUT:-runs/evidence}
PUBLISHED=benchmarks/raw
FRESH_POINTS=${FRESH_POINTS:-grpo reference_kl/0.02 lookahead_age/64 snapshot/8 replay/6 whole_response/64
  lookahead_fraction/0.25 lookahead_fraction/0.75 position/middle position/suffix}
OFTEN_POINTS=${OFTEN_POINTS:-grpo reference_kl/0.02 reference_kl/0.05 reference_kl/0.1 entropy_bonus/0.01
  entropy_bonus/0.03 temperature/1.2 temperature/1.4 lookahead_age/8 lookahead_age/64 lookahead_age/128
  lookahead_fraction/0.25 lookahead_fraction/0.75 lookahead_length/2 lookahead_clip/0.1 lookahead_clip/0.4
  lookahead_kl/0.02 lookahead_kl/0.05 snapshot/8 replay/6 masked/64 decoupled/64 whole_response/64}
LONG_POINTS=${LONG_POINTS:-grpo reference_kl/0.02 lookahead_age/64}
TRANSFER_POINTS=${TRANSFER_POINTS:-grpo lookahead_age/8 lookahead_age/64 replay/6 replay_best/0.5 reference_kl/0.02
  temperature/1.2 responses/4 masked/64}
HARD_POINTS=${HARD_POINTS:-grpo gradient_clip/0.1 gradient_clip/0.3 learning_rate/5e-05 updates/2 group_size/16
  responses/4 reference_kl/0.02 temperature/1.2 entropy_bonus/0.003 pods/4 lookahead_age/1 lookahead_age/8
  lookahead_age/64 lookahead_gradient_clip/0.1 lookahead_gradient_clip/0.3 replay_best/0.5 replay_best/0.75
  replay_best/0.875 replay_any/0.5 replay_gradient_clip/0.1 replay_gradient_clip/0.3 masked/8 replay_masked/0.5
  balanced/0.5 decoupled/8 whole_response/8 exo/8 oapl/8 oapl/50}
HARD_SIZES_POINTS=${HARD_SIZES_POINTS:-grpo lookahead_age/8 replay_best/0.5}
HARD_FRESH_POINTS=${HARD_FRESH_POINTS:-grpo responses/6 reference_kl/0.02 gradient_clip/0.3 lookahead_age/8
  replay_best/0.5 replay_best/0.75 replay_best/0.875 replay_any/0.5 replay_masked/0.5}
HARD_TRANSFER_POINTS=${HARD_TRANSFER_POINTS:-grpo responses/5 lookahead_age/8 replay_best/0.75} # chosen on hard_96
HARD_TEXT_POINTS=${HARD_TEXT_POINTS:-grpo replay_best/0.75 replay_best_cut replay_best_dr_grpo replay_best_cut_dr_grpo
  responses_dr_grpo pods/4 neighbor:first}
HARD_TEXT_FRESH_POINTS=${HARD_TEXT_FRESH_POINTS:-replay_best_cut/0.5 replay_best_dr_grpo/0.75 replay_best_cut_dr_grpo/0.5
  responses_dr_grpo neighbor/dr_grpo neighbor/exgrpo/0.125 neighbor/repo/0.5} # chosen by the one seed of HARD_TEXT_POINTS
HARD_ORDER_POINTS=${HARD_ORDER_POINTS:-grpo lookahead_age/8 replay_best/0.5 learning_rate/0.0002 responses/4 gradient_clip/0.3
  lookahead_age/64 replay_any/0.5 masked/8 reference_kl/0.02 group_size/16 replay_best/0.75}
NEIGHBOR_POINTS=${NEIGHBOR_POINTS:-neighbor} # all of them
REAL_POINTS=${REAL_POINTS:-grpo lookahead_age/64 snapshot/8 replay/6 masked/64}
REAL_SEEDS=${REAL_SEEDS:-3}
TASKS=${TASKS:-countdown chain_sum order}
TRANSFER=${TRANSFER-code puzzle text}

if [[ ${1:-} == --subset ]]; then
  "$PYTHON" -m benchmarks.prepare --task countdown --out "$ASSETS/countdown"
  exec "$PYTHON" -m benchmarks.replicate --published "$PUBLISHED" --assets "$ASSETS" --out "$OUT/subset"
fi
[[ $# -eq 0 ]] || { echo "run_all.sh: unknown argument '$1'; the only one is --subset" >&2; exit 2; }

simulate() { # variables of run_simulation.sh
  env ANALYSE=no "$@" bash benchmarks/run_simulation.sh
}
simulate TASKS="$TASKS" OUT="$OUT/sim"
for task in $TASKS; do # one seed is a search; then all methods, neighbours or not, at their best knobs on fresh ones
  simulate TASKS="$task" SEEDS=1 POINTS="grpo $NEIGHBOR_POINTS" OUT="$OUT/sim"
  best=$("$PYTHON" -m benchmarks.methods_page --results "$OUT/sim" --task "$task")
  simulate TASKS="$task" FIRST_SEED=100 POINTS="$best" OUT="$OUT/fresh"
done
if [[ " $TASKS " == *" countdown "* ]]; then
  simulate TASKS=countdown FIRST_SEED=100 POINTS="$FRESH_POINTS" OUT="$OUT/fresh"
  simulate TASKS=countdown_96 FIRST_SEED=100 POINTS="$OFTEN_POINTS" OUT="$OUT/fresh"
  simulate TASKS=countdown_1200 FIRST_SEED=100 POINTS="$LONG_POINTS" OUT="$OUT/fresh"
  simulate TASKS=countdown_96 FIRST_SEED=300 SEEDS="${SEEDS:-8}" OUT="$OUT/fresh" \
    POINTS="grpo lookahead_kl/0.05 reference_kl/0.05 reference_kl/0.1"
fi
if [[ " $TASKS " == *" chain_sum "* ]]; then
  simulate TASKS=chain_sum_8 POINTS="grpo lookahead_age/64 whole_response/64" OUT="$OUT/sim"
  simulate TASKS=hard_96 SEEDS=1 POINTS="$HARD_POINTS" OUT="$OUT/sim" # one seed: a search
  simulate TASKS="hard_240 hard_960 hard_weak_96 hard_fair_96" SEEDS=1 POINTS="$HARD_SIZES_POINTS" OUT="$OUT/sim"
  simulate TASKS=hard_96 FIRST_SEED=100 POINTS="$HARD_FRESH_POINTS" OUT="$OUT/fresh"
fi
if [[ " $TASKS " == *" order "* ]]; then
  simulate TASKS=hard_order_960 SEEDS=1 POINTS="$HARD_ORDER_POINTS" OUT="$OUT/sim"
fi
if [[ -n $TRANSFER ]]; then # other domains, from starts that are often and rarely right
  simulate TASKS="$TRANSFER" POINTS="$TRANSFER_POINTS" OUT="$OUT/sim"
  simulate TASKS="hard_${TRANSFER// / hard_}" FIRST_SEED=100 POINTS="$HARD_TRANSFER_POINTS" OUT="$OUT/fresh"
fi
if [[ " $TRANSFER " == *" text "* ]]; then
  simulate TASKS=hard_text SEEDS=1 POINTS="$HARD_TEXT_POINTS" OUT="$OUT/sim" # one seed: a search
  simulate TASKS=hard_text FIRST_SEED=100 POINTS="$HARD_TEXT_FRESH_POINTS" OUT="$OUT/fresh"
fi
for part in sim fresh; do
  [[ ! -d $OUT/$part ]] || "$PYTHON" -m benchmarks.keep --results "$OUT/$part" --published "$PUBLISHED"
done
if ((REAL_SEEDS > 0)); then
  # shellcheck disable=SC2086 # lists
  "$PYTHON" -m benchmarks.real_stack --assets "$ASSETS" --out "$OUT/real" --tasks $TASKS --points $REAL_POINTS \
    --seeds "$REAL_SEEDS" --set samples=32
  "$PYTHON" -m benchmarks.keep --results "$OUT/real" --published "$PUBLISHED/real_stack" # the places below are the same
fi
"$PYTHON" -m benchmarks.analyse --results "$PUBLISHED" --methods docs/methods_tables.md \
  --document docs/results_tables.md --figures docs/figures
if ((REAL_SEEDS > 0)); then # last: one number in twenty lies outside by chance, and then the exit code is 1
  for points in "countdown --points grpo replay/6" "countdown_96 --points grpo lookahead_age/64"; do
    same="--tasks $points --first-seed 100 --set steps=200 samples=32 evaluate_every=200"
    # shellcheck disable=SC2086 # lists
    "$PYTHON" -m benchmarks.grid --assets "$ASSETS" --out "$OUT/agreement/search" $same
    # shellcheck disable=SC2086
    "$PYTHON" -m benchmarks.real_stack --assets "$ASSETS" --out "$OUT/agreement/real" --seeds 1 $same
  done
  "$PYTHON" -m benchmarks.agreement --search "$OUT/agreement/search" --real "$OUT/agreement/real"
fi
