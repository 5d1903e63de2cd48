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
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

METHOD=${METHOD:-soup}         # soup or grpo
TASK=${TASK:-chain_sum}
SET=${SET-min_terms=2 max_terms=2 min_digits=1 max_digits=1}
SIZE=${SIZE:-64}               # questions for training; half as many for validation
OUT=${OUT:-runs/puzzles}
STEPS=${STEPS:-30}
PROMPTS=${PROMPTS:-8}          # prompts a step
N=${N:-8}                      # responses a prompt
LR=${LR:-3e-4}
VENV=${SOUP_VENV:-.venv}

die() { echo "run.sh: $*" >&2; exit 1; }
case $METHOD in
  soup) FRACTION=0.5 ;;
  grpo) FRACTION=0 ;;
  *) die "METHOD=$METHOD: expected soup or grpo" ;;
esac
PYTHON=${PYTHON:-$VENV/bin/python}
if [[ $PYTHON == "$VENV/bin/python" ]]; then bash scripts/install.sh "$VENV"; fi

# puzzles NAME SIZE
puzzles() {
  if [[ -e $OUT/data/reasoning-gym-$1.parquet ]]; then return; fi
  # shellcheck disable=SC2086 # a word a setting
  "$PYTHON" -m soup_verl.prepare_data --dataset "reasoning-gym:$1" --size "$2" --out "$OUT/data" --template tiny \
    ${SET:+--set $SET}
}
puzzles "$TASK" "$SIZE"
puzzles "$TASK-test" $((SIZE / 2))
"$PYTHON" examples/puzzles/teach.py --rows "$OUT/data/reasoning-gym-$TASK.parquet" --out "$OUT/model"

DATA=(
  data.train_files="$OUT/data/reasoning-gym-$TASK.parquet"
  data.val_files="$OUT/data/reasoning-gym-$TASK-test.parquet"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length=220
  data.max_response_length=30
)
MODEL=(actor_rollout_ref.model.path="$OUT/model")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64
)
ROLLOUT=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.max_model_len=256
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64
  actor_rollout_ref.rollout.val_kwargs.n=4
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
REWARD=(
  reward.custom_reward_function.path=pkg://soup_verl.reward
  +reward.custom_reward_function.reward_kwargs.partial_credit=false
)
TRAINER=(
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=10
  trainer.save_freq=10
  trainer.max_actor_ckpt_to_keep=2
)
SOUP=(
  soup.mixed_fraction="$FRACTION"
  soup.lookahead.age=2
  soup.prefix_length.low=2
  soup.prefix_length.high=12
)

exec "$PYTHON" -m recipe.soup.main_soup platform=cpu \
  hydra.run.dir="$OUT/$METHOD/hydra" trainer.default_local_dir="$OUT/$METHOD" \
  "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" "${TRAINER[@]}" "${SOUP[@]}" "$@"
