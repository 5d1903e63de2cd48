#!/usr/bin/env bash
# SOUP, or GRPO, on programs judged by tests in the sandbox, on this machine's CPU: a model of about a million parameters
# writes one-line programs for formulas in words.
#
#   bash examples/code/run.sh                     SOUP with the look-ahead
#   METHOD=grpo bash examples/code/run.sh         the baseline: the same run without historical tokens
#   bash examples/code/run.sh soup.mixed_fraction=0.25    any setting of the recipe
#   KEYWORDS=isolation=limits bash examples/code/run.sh   where the machine allows no namespaces (docs/code_rewards.md)
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

METHOD=${METHOD:-soup}         # soup or grpo
SOURCE=${SOURCE:-lookahead}    # lookahead, replay or snapshot
OUT=${OUT:-runs/code}
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
"$PYTHON" examples/code/teach.py --out "$OUT/assets"

DATA=(
  data.train_files="$OUT/assets/train.parquet"
  data.val_files="$OUT/assets/val.parquet"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length=48
  data.max_response_length=32
)
MODEL=(actor_rollout_ref.model.path="$OUT/assets/model")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64
)
ROLLOUT=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.max_model_len=96
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64
  actor_rollout_ref.rollout.val_kwargs.n=2
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
REWARD=(
  reward.custom_reward_function.path=pkg://soup_verl.reward
  ${KEYWORDS:+"+reward.custom_reward_function.reward_kwargs.$KEYWORDS"}
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
  soup.source="$SOURCE"
  soup.lookahead.age=2
  soup.prefix_length.low=2
  soup.prefix_length.high=12
)

exec "$PYTHON" -m recipe.soup.main_soup platform=cpu \
  hydra.run.dir="$OUT/$METHOD/hydra" trainer.default_local_dir="$OUT/$METHOD" \
  "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" "${TRAINER[@]}" "${SOUP[@]}" "$@"
