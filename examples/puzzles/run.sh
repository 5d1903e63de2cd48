#!/usr/bin/env bash
# SOUP, or GRPO, on puzzles of reasoning-gym on this machine's CPU: real verl, vLLM and Ray, a model of 1.3 million
# parameters that has learnt to write <answer>15</answer>, and is right in one answer of fourteen.
#
#   bash examples/puzzles/run.sh                         sums of two numbers, scored by reasoning-gym's own scorer
#   METHOD=grpo bash examples/puzzles/run.sh             the baseline: the same run without historical tokens
#   TASK=gcd SET="max_value=30" OUT=runs/gcd bash examples/puzzles/run.sh     another task, with its settings
#   bash examples/puzzles/run.sh soup.lookahead.age=8    any setting of the recipe
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk. Prompts of at most 220 bytes.
# More knobs: examples/common/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

TASK=${TASK:-chain_sum}
SET=${SET-min_terms=2 max_terms=2 min_digits=1 max_digits=1}
SIZE=${SIZE:-64}               # questions for training; half as many for validation
OUT=${OUT:-runs/puzzles}
source examples/common/train.sh

# puzzles NAME SIZE
puzzles() {
  if [[ -e $OUT/data/reasoning-gym-$1.parquet ]]; then return; fi
  # shellcheck disable=SC2086 # a word a setting
  "$PYTHON" -m soup_verl.prepare_data --dataset "reasoning-gym:$1" --size "$2" --out "$OUT/data" --template tiny \
    ${SET:+--set $SET}
}
puzzles "$TASK" "$SIZE"
puzzles "$TASK-test" $((SIZE / 2))
"$PYTHON" examples/puzzles/teach.py --rows "$OUT/data/reasoning-gym-$TASK.parquet" --out "$OUT"

lengths 220 30 256
train actor_rollout_ref.model.path="$OUT/model" \
  data.train_files="$OUT/data/reasoning-gym-$TASK.parquet" \
  data.val_files="$OUT/data/reasoning-gym-$TASK-test.parquet" \
  actor_rollout_ref.rollout.val_kwargs.n=4 \
  reward.custom_reward_function.path=pkg://soup_verl.reward \
  +reward.custom_reward_function.reward_kwargs.partial_credit=false "$@"
