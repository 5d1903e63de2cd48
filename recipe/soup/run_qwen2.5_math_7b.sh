#!/usr/bin/env bash
# SOUP on Qwen2.5-Math-7B with OpenR1-Math-46k. Baseline: run_qwen2.5_math_7b_grpo.sh. The paper's buffer of past
# weights instead of the look-ahead: run_qwen2.5_math_7b_snapshot.sh.
#
#   bash recipe/soup/run_qwen2.5_math_7b.sh                          one node
#   NNODES=4 bash recipe/soup/run_qwen2.5_math_7b.sh                 on a Ray cluster that is up (README: several nodes)
#   NAME=qwen_age_8 bash recipe/soup/run_qwen2.5_math_7b.sh soup.lookahead.age=8     any setting
#   NAME=qwen_objective bash recipe/soup/run_qwen2.5_math_7b.sh ablations=objective  a file of config/
#   REHEARSE=1 bash recipe/soup/run_qwen2.5_math_7b.sh               on this machine's CPU first (docs/rehearsal.md)
#   DRY_RUN=1 bash recipe/soup/run_qwen2.5_math_7b.sh                print the command only
#
# NAME is the run's folder under runs/: started again, a run goes on from its last checkpoint there, so every variant
# needs its own. All knobs are in run.sh, which this script is with settings of its own.
# Hardware: 8 GPUs of 80 GB, 500 GB of host memory, 200 GB of disk for KEEP=2 checkpoints. Hours: not yet measured.
# Number to expect: not yet measured. On-policy GRPO, as others report it for this model and data: 45.3 on average over
# AIME24, AIME25, AMC, MATH-500, Minerva and OlympiadBench (ExGRPO's and LUFFY's tables). Theirs differs in an entropy
# bonus of 0.001, advantages that are not divided by their deviation, and how the benchmarks are sampled.
# The paper's own hyperparameters are not available to us: prompts, mini-batch, n, lr, temperature and lengths are
# LUFFY's on-policy baseline's; SOUP's are this project's defaults (config/soup_trainer.yaml).
set -euo pipefail

export NAME=${NAME:-qwen2.5_math_7b_${METHOD:-soup}}
export MODEL_PATH=${MODEL_PATH:-Qwen/Qwen2.5-Math-7B}
export DATA=${DATA:-openr1-math-46k}
export TEMPLATE=${TEMPLATE:-qwen-math}
export TP=${TP:-2}
# The model was made for 4096 tokens; the copy that is trained allows for 16384.
export CONTEXT_TOKENS=${CONTEXT_TOKENS:-16384} ROPE_THETA=${ROPE_THETA:-40000}
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"
