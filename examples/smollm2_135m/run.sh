#!/usr/bin/env bash
# SOUP, or GRPO, on a real pretrained model and this machine's CPU: SmolLM2-135M-Instruct learns sums asked in words,
# answered in \boxed{}.
#
#   bash examples/smollm2_135m/run.sh                         SOUP; model and data are made first, once
#   METHOD=grpo bash examples/smollm2_135m/run.sh             the baseline: the same run without historical tokens
#   bash examples/smollm2_135m/run.sh soup.lookahead.age=8    any setting of the recipe
#   DRY_RUN=1 bash examples/smollm2_135m/run.sh               print the settings only
#
# Hardware: 2 cores, 16 GB of memory, 10 GB of disk. Seconds a step, hours and the curve: README.md beside this file.
# Needs Python 3.11 or 3.12 and a C compiler. A run that was interrupted goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

METHOD=${METHOD:-soup}         # soup or grpo
OUT=${OUT:-runs/smollm2_135m}
STEPS=${STEPS:-60}
PROMPTS=${PROMPTS:-8}          # a step
N=${N:-8}                      # responses a prompt
LR=${LR:-1e-5}
TEMPERATURE=${TEMPERATURE:-0.7} # at 1.0 one response in two is not even in a box at first
RESPONSE_TOKENS=${RESPONSE_TOKENS:-48}
MICRO_BATCH_PROMPTS=${MICRO_BATCH_PROMPTS:-4} # with all their responses
THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN)}
DTYPE=${DTYPE:-auto}           # of products, weights stay float32: bf16, fp32, or auto: bf16 where the CPU multiplies it
OLD_LOG_PROBS=${OLD_LOG_PROBS:-rollout} # rollout: the engine's own; actor: recomputed, one more forward pass a step
VENV=${SOUP_VENV:-.venv}
PROMPT_TOKENS=96

die() { echo "run.sh: $*" >&2; exit 1; }
case $METHOD in
  soup) FRACTION=0.5 ;;
  grpo) FRACTION=0 ;;
  *) die "METHOD=$METHOD: expected soup or grpo" ;;
esac
if [[ $DTYPE == auto ]]; then
  # x86 says amx_bf16 or avx512_bf16, ARM says bf16. Elsewhere bfloat16 is emulated and slower than float32.
  if grep -qswE 'amx_bf16|avx512_bf16|bf16' /proc/cpuinfo; then DTYPE=bf16; else DTYPE=fp32; fi
fi
case $DTYPE in
  bf16) ROLLOUT_DTYPE=bfloat16 ;;
  fp32) ROLLOUT_DTYPE=float32 ;;
  *) die "DTYPE=$DTYPE: expected auto, bf16 or fp32" ;;
esac
case $OLD_LOG_PROBS in
  rollout) BYPASS=true ;;
  actor) BYPASS=false ;;
  *) die "OLD_LOG_PROBS=$OLD_LOG_PROBS: expected rollout or actor" ;;
esac

# Sampling and training take turns, so each may have every core; a thread that waits must not spin on one.
export OMP_NUM_THREADS=$THREADS OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
PYTHON=${PYTHON:-$VENV/bin/python}
if [[ -z ${DRY_RUN:-} && $PYTHON == "$VENV/bin/python" ]]; then bash scripts/install.sh "$VENV"; fi
source recipe/soup/prepare.sh
if [[ -z ${DRY_RUN:-} && ! -e $OUT/assets/prepare.json ]]; then
  "$PYTHON" examples/smollm2_135m/prepare.py --out "$OUT/assets" --threads "$THREADS"
fi

DATA=(
  data.train_files="$OUT/assets/train.parquet"
  data.val_files="$OUT/assets/val.parquet"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length="$PROMPT_TOKENS"
  data.max_response_length="$RESPONSE_TOKENS"
)
MODEL=(
  actor_rollout_ref.model.path="$OUT/assets/model"
  actor_rollout_ref.model.use_remove_padding=true
)
ALGORITHM=(algorithm.rollout_correction.bypass_mode="$BYPASS")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
  # The responses of a group stay together: on a CPU their prompt is computed once for all of them.
  actor_rollout_ref.actor.use_dynamic_bsz=false
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu="$((MICRO_BATCH_PROMPTS * N))"
  actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype="$DTYPE"
  actor_rollout_ref.actor.fsdp_config.reshard_after_forward=false # one rank: gathering again would only copy
)
ROLLOUT=(
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu="$((MICRO_BATCH_PROMPTS * N))"
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.temperature="$TEMPERATURE"
  actor_rollout_ref.rollout.dtype="$ROLLOUT_DTYPE"
  actor_rollout_ref.rollout.max_model_len="$((PROMPT_TOKENS + RESPONSE_TOKENS))"
  # The platform's 64 MiB hold 2,900 tokens of this model in bf16: 20 of the 96 requests a step.
  actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=536870912
  actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=128 # the embedding alone has 113
  actor_rollout_ref.rollout.val_kwargs.n=2
  actor_rollout_ref.rollout.val_kwargs.temperature="$TEMPERATURE"
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
REWARD=(reward.custom_reward_function.path=pkg://soup_verl.reward)
TRAINER=(
  trainer.project_name=smollm2_135m
  trainer.experiment_name="$METHOD"
  trainer.default_local_dir="$OUT/$METHOD"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=10
  trainer.save_freq=10
  trainer.max_actor_ckpt_to_keep=2
  trainer.resume_mode=auto
)
SOUP=(
  soup.mixed_fraction="$FRACTION"
  soup.source=lookahead
  soup.lookahead.age=4
  soup.prefix_length.low=2
  soup.prefix_length.high=12
)

train platform=cpu "${DATA[@]}" "${MODEL[@]}" "${ALGORITHM[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" \
  "${TRAINER[@]}" "${SOUP[@]}" "$@"
