#!/usr/bin/env bash
# The whole evidence again, resumable: models, PLAN on the search instrument, the main points on the real stack, whether
# both instruments agree, tables and figures. On two cores a line of PLAN takes 1 to 3 minutes for each of its tasks,
# points and seeds, all of it 30 to 60 hours; the real stack 15 to 23 (45 runs of 400 steps), the agreement 3 to 6.
#
#   bash benchmarks/run_all.sh             everything
#   bash benchmarks/run_all.sh --subset    ten minutes: a few published points again on a new seed; each number must
#                                          fall into the interval that the published seeds predict
#   TASKS="hard_96 hard_text"              only these tasks
#   SEEDS, REAL_SEEDS                      at most so many for a line of PLAN; on the real stack (default 3, 0: without)
#   WORKERS                                of a line, default 2
#   What it finds takes the place of benchmarks/raw and of the tables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-.venv/bin/python}
export ASSETS=${ASSETS:-data/benchmarks}
OUT=${OUT:-runs/evidence}
PUBLISHED=benchmarks/raw
REAL_SEEDS=${REAL_SEEDS:-3}
# PART SEEDS FIRST-SEED TASKS: POINTS. `all`: the grid without the recipe's neighbours; `best`: every method, neighbours
# too, at the knob that did best in the lines before. One seed, 0, is a search; seeds from 100 on are fresh ones, on which
# only what a search chose is run.
PLAN='
sim   5 0   countdown chain_sum order: all
sim   1 0   countdown chain_sum order: grpo neighbor
fresh 5 100 countdown chain_sum order: best
fresh 5 100 countdown: grpo reference_kl/0.02 lookahead_age/64 snapshot/8 replay/6 whole_response/64 lookahead_fraction position
fresh 5 100 countdown_96: grpo reference_kl/0.02 reference_kl/0.05 reference_kl/0.1 entropy_bonus/0.01 entropy_bonus/0.03 temperature/1.2 temperature/1.4 lookahead_age/8 lookahead_age/64 lookahead_age/128 lookahead_fraction lookahead_length/2 lookahead_clip lookahead_kl snapshot/8 replay/6 masked/64 decoupled/64 whole_response/64
fresh 5 100 countdown_1200: grpo reference_kl/0.02 lookahead_age/64
fresh 8 300 countdown_96: grpo lookahead_kl/0.05 reference_kl/0.05 reference_kl/0.1
sim   5 0   chain_sum_8: grpo lookahead_age/64 whole_response/64
sim   1 0   hard_96: grpo gradient_clip learning_rate/5e-05 updates/2 group_size/16 responses/4 reference_kl/0.02 temperature/1.2 entropy_bonus/0.003 pods/4 lookahead_age/1 lookahead_age/8 lookahead_age/64 lookahead_gradient_clip replay_best replay_any/0.5 replay_gradient_clip masked/8 replay_masked/0.5 balanced/0.5 decoupled/8 whole_response/8 exo/8 oapl
sim   1 0   hard_240 hard_960 hard_weak_96 hard_fair_96: grpo lookahead_age/8 replay_best/0.5
fresh 5 100 hard_96: grpo responses/6 reference_kl/0.02 gradient_clip/0.3 lookahead_age/8 replay_best replay_any/0.5 replay_masked/0.5
sim   1 0   hard_order_960: grpo lookahead_age/8 lookahead_age/64 replay_best/0.5 replay_best/0.75 replay_any/0.5 masked/8 learning_rate/0.0002 responses/4 gradient_clip/0.3 reference_kl/0.02 group_size/16
sim   5 0   code puzzle text: grpo lookahead_age/8 lookahead_age/64 replay/6 replay_best/0.5 reference_kl/0.02 temperature/1.2 responses/4 masked/64
fresh 5 100 hard_code hard_puzzle hard_text: grpo responses/5 lookahead_age/8 replay_best/0.75
sim   1 0   hard_text: grpo replay_best/0.75 replay_best_cut replay_best_dr_grpo replay_best_cut_dr_grpo responses_dr_grpo pods/4 neighbor:first
fresh 5 100 hard_text: learning_rate/0.0002 dr_grpo_rate/0.0002 replay_best_cut/0.5 replay_best_dr_grpo replay_best_dr_grpo_rate/0.0002 replay_best_dr_grpo_advantages replay_best_dr_grpo_loss replay_best_cut_dr_grpo/0.5 responses_dr_grpo neighbor/dr_grpo neighbor/exgrpo/0.125 neighbor/repo/0.5
fresh 5 100 hard_96 hard_puzzle: replay_best_dr_grpo replay_best_cut_dr_grpo/0.5 neighbor/dr_grpo
'
REAL_POINTS="grpo lookahead_age/64 snapshot/8 replay/6 masked/64" # on countdown, chain_sum and order
# STEPS TASK: POINTS that both instruments run; the real stack on REAL_SEEDS seeds, the search instrument on five.
AGREEMENT='
200 countdown: grpo replay/6
200 countdown_96: grpo lookahead_age/64
400 hard_96: grpo
400 hard_text: grpo replay_best/0.75
'

if [[ ${1:-} == --subset ]]; then
  "$PYTHON" -m benchmarks.prepare --task countdown --out "$ASSETS/countdown"
  exec "$PYTHON" -m benchmarks.replicate --published "$PUBLISHED" --assets "$ASSETS" --out "$OUT/subset"
fi
[[ $# -eq 0 ]] || { echo "run_all.sh: unknown argument '$1'; the only one is --subset" >&2; exit 2; }

wanted() { # TASK: whether it is one of TASKS
  [[ " ${TASKS:-$1} " == *" $1 "* ]]
}
while IFS=: read -r -u 3 place points; do
  read -r part seeds first tasks <<<"$place"
  ((seeds <= ${SEEDS:-$seeds})) || seeds=$SEEDS
  for task in $tasks; do
    wanted "$task" || continue
    case $points in
      " all") names= ;;
      " best") names=$("$PYTHON" -m benchmarks.methods_page --results "$OUT/sim" --task "$task") ;;
      *) names=$points ;;
    esac
    env ANALYSE=no TASKS="$task" SEEDS="$seeds" FIRST_SEED="$first" POINTS="${names# }" OUT="$OUT/$part" \
      bash benchmarks/run_simulation.sh
  done
done 3< <(sed '/^$/d' <<<"$PLAN")
for part in sim fresh; do
  [[ ! -d $OUT/$part ]] || "$PYTHON" -m benchmarks.keep --results "$OUT/$part" --published "$PUBLISHED"
done
real=$(for task in countdown chain_sum order; do ! wanted "$task" || echo "$task"; done)
if ((REAL_SEEDS > 0)) && [[ -n $real ]]; then
  # shellcheck disable=SC2086 # lists
  "$PYTHON" -m benchmarks.real_stack --assets "$ASSETS" --out "$OUT/real" --tasks $real --points $REAL_POINTS \
    --seeds "$REAL_SEEDS" --set samples=32
  "$PYTHON" -m benchmarks.keep --results "$OUT/real" --published "$PUBLISHED/real_stack" # the places below are the same
fi
"$PYTHON" -m benchmarks.analyse --results "$PUBLISHED" --methods docs/methods_tables.md \
  --document docs/results_tables.md --figures docs/figures
if ((REAL_SEEDS > 0)); then # last: one number in twenty lies outside by chance, and then the exit code is 1
  agreed=no
  while IFS=: read -r -u 3 place points; do
    read -r steps task <<<"$place"
    wanted "$task" || continue
    agreed=yes
    same="--tasks $task --points $points --first-seed 100 --set steps=$steps samples=32 evaluate_every=$steps"
    # shellcheck disable=SC2086 # lists
    "$PYTHON" -m benchmarks.grid --assets "$ASSETS" --out "$OUT/agreement/search" $same
    # shellcheck disable=SC2086
    "$PYTHON" -m benchmarks.real_stack --assets "$ASSETS" --out "$OUT/agreement/real" --seeds "$REAL_SEEDS" $same
  done 3< <(sed '/^$/d' <<<"$AGREEMENT")
  [[ $agreed == no ]] ||
    "$PYTHON" -m benchmarks.agreement --search "$OUT/agreement/search" --real "$OUT/agreement/real"
fi
