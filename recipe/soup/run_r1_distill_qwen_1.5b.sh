#!/usr/bin/env bash
# SOUP on DeepSeek-R1-Distill-Qwen-1.5B with DAPO-Math-17k. Baseline: run_r1_distill_qwen_1.5b_grpo.sh. The paper's
# buffer of past weights instead of the look-ahead: run_r1_distill_qwen_1.5b_snapshot.sh.
#
#   bash recipe/soup/run_r1_distill_qwen_1.5b.sh                       one node
#   NNODES=2 bash recipe/soup/run_r1_distill_qwen_1.5b.sh              on a Ray cluster that is up (README: several nodes)
#   NAME=r1_age_8 bash recipe/soup/run_r1_distill_qwen_1.5b.sh soup.lookahead.age=8     any setting
#   NAME=r1_objective bash recipe/soup/run_r1_distill_qwen_1.5b.sh ablations=objective  a file of examples/
#   DRY_RUN=1 bash recipe/soup/run_r1_distill_qwen_1.5b.sh             print the command only
#
# NAME is the run's folder under runs/: started again, a run goes on from its last checkpoint there, so every variant
# needs its own.
# Hardware: 8 GPUs of 80 GB, 250 GB of host memory, 50 GB of disk for KEEP=2 checkpoints. Hours: not yet measured.
# Number to expect: not yet measured. The model before training, as others report it: 48.9 on average over AIME24, AMC,
# MATH-500, Minerva and OlympiadBench; DeepScaleR, trained for longer and at longer lengths, 57.0.
# The paper's own hyperparameters are not public: prompts, mini-batch, n, lr and lengths are those of DeepScaleR's stage
# of 8k tokens, the data set is DAPO's; SOUP's are this project's defaults (config/soup_trainer.yaml).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

NAME=${NAME:-r1_distill_qwen_1.5b_soup}
MODEL_PATH=${MODEL_PATH:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
OUT=${OUT:-runs/$NAME}
NNODES=${NNODES:-1}
GPUS=${GPUS:-8}                  # a node
TP=${TP:-1}                      # of the rollout engine
PROMPTS=${PROMPTS:-128}          # a step
MINI_BATCH=${MINI_BATCH:-64}     # prompts an update
N=${N:-8}                        # responses a prompt
LR=${LR:-1e-6}
PROMPT_TOKENS=${PROMPT_TOKENS:-1024}
RESPONSE_TOKENS=${RESPONSE_TOKENS:-8192}
STEPS=${STEPS:-500}
KEEP=${KEEP:-2}                  # checkpoints; SOUP inference needs older ones too
DATA_DIR=${DATA_DIR:-data/$(basename "$MODEL_PATH")_prompts_of_$PROMPT_TOKENS}
PYTHON=${PYTHON:-python3}
BENCHMARKS=(math-500 amc23 aime24 aime25 minerva olympiadbench)

source recipe/soup/prepare.sh
prepare_benchmarks r1-distill "$MODEL_PATH"
prepare_training dapo-math-17k r1-distill "$MODEL_PATH"

DATA=(
  data.train_files="$DATA_DIR/dapo-math-17k.parquet"
  data.val_files="$(parquet_list)"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length="$PROMPT_TOKENS"
  data.max_response_length="$RESPONSE_TOKENS"
)
MODEL=(actor_rollout_ref.model.path="$MODEL_PATH")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$MINI_BATCH"
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$((4 * (PROMPT_TOKENS + RESPONSE_TOKENS)))"
  actor_rollout_ref.actor.use_kl_loss=true
  actor_rollout_ref.actor.kl_loss_coef=0.001
  actor_rollout_ref.actor.kl_loss_type=low_var_kl
)
ROLLOUT=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.temperature=0.6
  actor_rollout_ref.rollout.tensor_model_parallel_size="$TP"
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7
  actor_rollout_ref.rollout.max_model_len="$((PROMPT_TOKENS + RESPONSE_TOKENS))"
  actor_rollout_ref.rollout.val_kwargs.n=8
  actor_rollout_ref.rollout.val_kwargs.temperature=0.6
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
REWARD=(reward.custom_reward_function.path=pkg://soup_verl.reward)
TRAINER=(
  trainer.project_name=soup
  trainer.experiment_name="$NAME"
  trainer.default_local_dir="$OUT"
  trainer.nnodes="$NNODES"
  trainer.n_gpus_per_node="$GPUS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=20
  trainer.save_freq=20
  trainer.max_actor_ckpt_to_keep="$KEEP"
  trainer.resume_mode=auto
)

train "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" "${TRAINER[@]}" "$@"
