# What the examples' scripts have in common: knobs, the environment, and the settings of a tiny model on this machine's
# CPU. To be sourced in the repository's root by a script that has set OUT, the folder of all that it makes.
# shellcheck shell=bash

METHOD=${METHOD:-soup}         # soup or grpo
SOURCE=${SOURCE:-lookahead}    # lookahead, snapshot or replay
STEPS=${STEPS:-30}
PROMPTS=${PROMPTS:-8}          # prompts a step
N=${N:-8}                      # responses a prompt
LR=${LR:-3e-4}
VENV=${SOUP_VENV:-.venv}
PYTHON=${PYTHON:-$VENV/bin/python}

die() { echo "${0##*/}: $*" >&2; exit 1; }
case $METHOD in
  soup) FRACTION=0.5 RUN=$OUT/$SOURCE ;;
  grpo) FRACTION=0 RUN=$OUT/grpo ;;
  *) die "METHOD=$METHOD: expected soup or grpo" ;;
esac
if [[ $PYTHON == "$VENV/bin/python" ]]; then bash scripts/install.sh "$VENV"; fi

# A script's own settings come after these and win over them.
COMMON=(
  platform=cpu
  data.train_batch_size="$PROMPTS"
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64
  actor_rollout_ref.rollout.val_kwargs.n=2
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=10
  trainer.save_freq=10
  trainer.max_actor_ckpt_to_keep=2
  soup.source="$SOURCE"
  soup.lookahead.age=2
  soup.prefix_length.low=2
  soup.prefix_length.high=12
)

# lengths PROMPT RESPONSE MODEL: the longest in tokens, the last of both together.
lengths() {
  COMMON+=(data.max_prompt_length="$1" data.max_response_length="$2" actor_rollout_ref.rollout.max_model_len="$3")
}

# assets FOLDER: its model, train.parquet and val.parquet.
assets() {
  COMMON+=(
    actor_rollout_ref.model.path="$1/model"
    data.train_files="$1/train.parquet"
    data.val_files="$1/val.parquet"
  )
}

# train SETTINGS...: the run itself, into $OUT/grpo or, with SOUP, a folder named after the source.
train() {
  exec "$PYTHON" -m recipe.soup.main_soup "${COMMON[@]}" soup.mixed_fraction="$FRACTION" \
    trainer.default_local_dir="$RUN" "$@"
}
