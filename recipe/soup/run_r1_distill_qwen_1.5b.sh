#!/usr/bin/env bash
# SOUP on DeepSeek-R1-Distill-Qwen-1.5B with DAPO-Math-17k. Baseline: run_r1_distill_qwen_1.5b_grpo.sh. The paper's
# buffer of past weights instead of the look-ahead: run_r1_distill_qwen_1.5b_snapshot.sh.
#
#   bash recipe/soup/run_r1_distill_qwen_1.5b.sh                       one node
#   NNODES=2 bash recipe/soup/run_r1_distill_qwen_1.5b.sh              on a Ray cluster that is up (README: several nodes)
#   NAME=r1_age_8 bash recipe/soup/run_r1_distill_qwen_1.5b.sh soup.lookahead.age=8     any setting
#   NAME=r1_objective bash recipe/soup/run_r1_distill_qwen_1.5b.sh ablations=objective  a file of config/
#   REHEARSE=1 bash recipe/soup/run_r1_distill_qwen_1.5b.sh            on this machine's CPU first (docs/rehearsal.md)
#   DRY_RUN=1 bash recipe/soup/run_r1_distill_qwen_1.5b.sh             print the command only
#
# NAME is the run's folder under runs/: started again, a run goes on from its last checkpoint there, so every variant
# needs its own. All knobs are in run.sh, which this script is with settings of its own.
# Hardware: 8 GPUs of 80 GB, 250 GB of host memory, 50 GB of disk for KEEP=2 checkpoints. Hours: not yet measured.
# Number to expect: not yet measured. The model before training, as others report it: 48.9 on average over AIME24, AMC,
# MATH-500, Minerva and OlympiadBench; DeepScaleR, trained for longer and at longer lengths, 57.0.
# The paper's own hyperparameters are not available to us: prompts, mini-batch, n, lr and lengths are those of
# DeepScaleR's stage of 8k tokens, the data set is DAPO's; SOUP's are this project's defaults (config/soup_trainer.yaml).
set -euo pipefail

export NAME=${NAME:-r1_distill_qwen_1.5b_${METHOD:-soup}}
export MODEL_PATH=${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
export DATA=${DATA:-dapo-math-17k}
export TEMPLATE=${TEMPLATE:-r1-distill}
export TEMPERATURE=${TEMPERATURE:-0.6}
export MICRO_BATCH=${MICRO_BATCH:-4}
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" \
  actor_rollout_ref.actor.use_kl_loss=true \
  actor_rollout_ref.actor.kl_loss_coef=0.001 \
  actor_rollout_ref.actor.kl_loss_type=low_var_kl \
  "$@"
