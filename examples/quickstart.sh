#!/usr/bin/env bash
# GRPO and SOUP side by side on this machine's CPU: real verl, vLLM and Ray, a model of 1.3 million parameters that
# learns to add. Under 15 minutes on 2 cores, the first installation included; 8 GB of memory, 6 GB of disk.
#
#   bash examples/quickstart.sh                       everything into runs/quickstart
#   STEPS=20 bash examples/quickstart.sh              shorter
#   bash examples/quickstart.sh soup.lookahead.age=8  any setting of the recipe, for both runs
#
# Needs Python 3.11 or 3.12 and a C compiler. Both runs share one set of processes, one after the other. A run that has
# finished is not repeated, one that was interrupted goes on from its last checkpoint; OUT=... starts afresh elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT=${OUT:-runs/quickstart}
STEPS=${STEPS:-30}
PROMPTS=${PROMPTS:-8}          # prompts a step
N=${N:-8}                      # responses a prompt
LR=${LR:-3e-4}
MIXED_FRACTION=${MIXED_FRACTION:-0.5}
SOURCE=${SOURCE:-lookahead}    # lookahead or snapshot
VENV=${SOUP_VENV:-.venv}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # an interrupted quickstart leaves no run behind

bash scripts/install.sh "$VENV"
PYTHON=$VENV/bin/python
"$PYTHON" examples/quickstart/prepare.py --out "$OUT/assets"

DATA=(
  data.train_files="$OUT/assets/train.parquet"
  data.val_files="$OUT/assets/val.parquet"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length=48
  data.max_response_length=40
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
REWARD=(reward.custom_reward_function.path=examples/quickstart/reward.py)
TRAINER=(
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=10
  trainer.save_freq=10
  trainer.max_actor_ckpt_to_keep=2
)
SOUP=(
  soup.source="$SOURCE"
  soup.lookahead.age=4
  soup.prefix_length.low=2
  soup.prefix_length.high=12
)

mkdir -p "$OUT"
echo "== $STEPS steps each, log in $OUT/log.txt"
"$PYTHON" -m recipe.soup.main_series --out "$OUT" \
  --run grpo soup.mixed_fraction=0 --run soup soup.mixed_fraction="$MIXED_FRACTION" \
  -- platform=cpu "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" "${TRAINER[@]}" "${SOUP[@]}" "$@" \
  >"$OUT/log.txt" 2>&1 &
"$PYTHON" examples/quickstart/progress.py --runs "$OUT/grpo" "$OUT/soup" --steps "$STEPS" --process $!
wait $! || { tail -n 3 "$OUT/log.txt" >&2; exit 1; }
"$PYTHON" examples/quickstart/summarize.py --grpo "$OUT/grpo" --soup "$OUT/soup" \
  --source "$SOURCE" --mixed-fraction "$MIXED_FRACTION" --out "$OUT"
