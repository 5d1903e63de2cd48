#!/usr/bin/env bash
# Train any model with SOUP or a baseline. The papers' two runs beside it are this script with their own knobs.
#
#   MODEL_PATH=meta-llama/Llama-3.2-3B-Instruct DATA=math-level3-5 TEMPLATE=r1-distill bash recipe/soup/run.sh
#   METHOD=grpo ...          without mixing; METHOD=snapshot: prefixes from a buffer of past weights (the paper's source)
#   DATA=/data/mine.parquet BENCHMARKS=/data/held_out.parquet REWARD_PATH=/data/reward.py     data of one's own
#   ... bash recipe/soup/run.sh soup.lookahead.age=8       any setting; ablations=NAME, neighbors=NAME: one of config/
#   NNODES=4 ...                                           on a Ray cluster that is up (README: several nodes)
#   REHEARSE=1 ...                                         on this machine's CPU first (docs/rehearsal.md)
#   DRY_RUN=1 ...                                          print the command only
#
# NAME is the run's folder under runs/: started again, a run goes on from its last checkpoint there, so every variant
# needs its own. Paths are relative to the repository's root. Hardware: preflight says what the run needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source recipe/soup/prepare.sh

DOMAIN= # the file of `domains=NAME` on the command line
for setting in "$@"; do
  if [[ $setting == domains=* && $setting != domains=null ]]; then
    DOMAIN=recipe/soup/config/domains/${setting#*=}.yaml
    [[ -f $DOMAIN ]] || { echo "run.sh: $setting: there is no $DOMAIN; python -m recipe.soup.list names all" >&2; exit 2; }
  fi
done
# sized KEY DEFAULT: what the domain's file says of KEY, else DEFAULT.
sized() {
  local found=
  if [[ -n $DOMAIN ]]; then found=$(sed -n "s/^ *$1: *\([0-9]*\).*/\1/p" "$DOMAIN"); fi
  echo "${found:-$2}"
}

MODEL_PATH=${MODEL_PATH:?a model\'s folder, or its name on the hub}
TRAIN_SET=${DATA:?a data set that soup_verl.prepare_data knows, such as dapo-math-17k, or a parquet file}
# For validation; names, or parquet files whose paths have no spaces. Those below are of mathematics.
if [[ -n $DOMAIN ]]; then : "${BENCHMARKS:?what to validate on, as in the head of $DOMAIN}"; fi
BENCHMARKS=${BENCHMARKS:-math-500 amc23 aime24 aime25 minerva olympiadbench}
TEMPLATE=${TEMPLATE:-r1-distill} # how a question is put, for data sets by name: soup_verl/tasks/data/prompt_templates.py
METHOD=${METHOD:-soup}           # soup, snapshot, replay or grpo
NAME=${NAME:-$(basename "$MODEL_PATH")_$METHOD}
OUT=${OUT:-runs/$NAME}
REHEARSAL=${REHEARSAL:-runs/rehearsals/$NAME} # with REHEARSE=1, in place of OUT
NNODES=${NNODES:-1}
GPUS=${GPUS:-8}                  # a node
TP=${TP:-1}                      # of the rollout engine
PROMPTS=${PROMPTS:-128}          # a step
MINI_BATCH=${MINI_BATCH:-64}     # prompts an update
N=${N:-8}                        # responses a prompt
LR=${LR:-1e-6}
TEMPERATURE=${TEMPERATURE:-1.0}
PROMPT_TOKENS=${PROMPT_TOKENS:-$(sized max_prompt_length 1024)}
RESPONSE_TOKENS=${RESPONSE_TOKENS:-$(sized max_response_length 8192)}
MICRO_BATCH=${MICRO_BATCH:-2}    # longest sequences that a GPU trains on at once; shorter ones fill their place
STEPS=${STEPS:-$(sized total_training_steps 500)}
KEEP=${KEEP:-2}                  # checkpoints; SOUP inference needs older ones too
# Validation: responses to each of its prompts, and steps from one to the next. With the benchmarks above it has 7% as
# many responses as the training; preflight says how many they are.
VAL_N=${VAL_N:-4}
TEST_EVERY=${TEST_EVERY:-$(sized test_freq 100)}
REWARD_PATH=${REWARD_PATH:-pkg://soup_verl.reward}
CONTEXT_TOKENS=${CONTEXT_TOKENS:-} # with ROPE_THETA: a context window this wide
DATA_DIR=${DATA_DIR:-data/$(basename "$MODEL_PATH")_${TEMPLATE}_prompts_of_$PROMPT_TOKENS}

prepare_benchmarks
prepare_training
READY_MODEL=$DATA_DIR/$(basename "$MODEL_PATH")${CONTEXT_TOKENS:+_$CONTEXT_TOKENS}
make_ready "$READY_MODEL" ${CONTEXT_TOKENS:+--max-position-embeddings "$CONTEXT_TOKENS" \
  --rope-theta "${ROPE_THETA:?base of the rotary embedding, with CONTEXT_TOKENS}"}

DATA=(
  data.train_files="$(parquet "$DATA_DIR" "$TRAIN_SET")"
  data.val_files="$(benchmark_files)"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length="$PROMPT_TOKENS"
  data.max_response_length="$RESPONSE_TOKENS"
)
MODEL=(actor_rollout_ref.model.path="$READY_MODEL")
ACTOR=(
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$MINI_BATCH"
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$((MICRO_BATCH * (PROMPT_TOKENS + RESPONSE_TOKENS)))"
)
ROLLOUT=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.temperature="$TEMPERATURE"
  actor_rollout_ref.rollout.tensor_model_parallel_size="$TP"
  actor_rollout_ref.rollout.gpu_memory_utilization=0.7
  actor_rollout_ref.rollout.max_model_len="$((PROMPT_TOKENS + RESPONSE_TOKENS))"
  actor_rollout_ref.rollout.val_kwargs.n="$VAL_N"
  actor_rollout_ref.rollout.val_kwargs.temperature=0.6
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
)
REWARD=(reward.custom_reward_function.path="$REWARD_PATH")
TRAINER=(
  trainer.project_name=soup
  trainer.experiment_name="$NAME"
  trainer.default_local_dir="$OUT"
  trainer.nnodes="$NNODES"
  trainer.n_gpus_per_node="$GPUS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq="$TEST_EVERY"
  trainer.save_freq=20
  trainer.max_actor_ckpt_to_keep="$KEEP"
  trainer.resume_mode=auto
)
case $METHOD in
  soup) SOUP=() ;;
  snapshot) SOUP=(soup.source=snapshot soup.snapshot.every=10) ;;
  replay) SOUP=(soup.source=replay) ;;
  grpo) SOUP=(soup.mixed_fraction=0) ;;
  *) echo "run.sh: METHOD=$METHOD: expected soup, snapshot, replay or grpo" >&2; exit 2 ;;
esac

train "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${REWARD[@]}" "${TRAINER[@]}" "${SOUP[@]}" "$@"
