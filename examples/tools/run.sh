#!/usr/bin/env bash
# SOUP, or GRPO, with verl's own tool agent loop on this machine's CPU: a model of 1.3 million parameters works sums out
# with a calculator, a turn a call.
#
#   bash examples/tools/run.sh                     replay: whole recorded turns are played back, up to a cut
#   SOURCE=lookahead bash examples/tools/run.sh    prefixes in the first turn
#   METHOD=grpo bash examples/tools/run.sh         the baseline: the same run without historical tokens
#   bash examples/tools/run.sh soup.mixed_fraction=0.25    any setting of the recipe
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

METHOD=${METHOD:-soup}         # soup or grpo
SOURCE=${SOURCE:-replay}       # replay, lookahead or snapshot
OUT=${OUT:-runs/tools}
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
"$PYTHON" examples/tools/teach.py --out "$OUT/assets"

DATA=(
  data.train_files="$OUT/assets/train.parquet"
  data.val_files="$OUT/assets/val.parquet"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length=48
  data.max_response_length=96  # of all turns, the tool's answers included
)
MODEL=(actor_rollout_ref.model.path="$OUT/assets/model")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64
)
ROLLOUT=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.max_model_len=160
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64
  actor_rollout_ref.rollout.val_kwargs.n=2
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
TOOLS=(
  actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent
  actor_rollout_ref.rollout.multi_turn.enable=true
  actor_rollout_ref.rollout.multi_turn.function_tool_path=examples/tools/calculator.py
  actor_rollout_ref.rollout.multi_turn.max_assistant_turns=5
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
  soup.mixed_fraction="$FRACTION"
  soup.source="$SOURCE"
  soup.lookahead.age=2
  soup.prefix_length.low=2
  soup.prefix_length.high=24
)

exec "$PYTHON" -m recipe.soup.main_soup platform=cpu \
  hydra.run.dir="$OUT/$METHOD/hydra" trainer.default_local_dir="$OUT/$METHOD" \
  "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${TOOLS[@]}" "${REWARD[@]}" "${TRAINER[@]}" "${SOUP[@]}" "$@"
