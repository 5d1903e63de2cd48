#!/usr/bin/env bash
# A run script on the nodes of a Slurm job: Ray on all of them, the run on the first. Ten minutes before the time limit
# the job stops, goes back into the queue, and resumes from its last checkpoint: trainer.save_freq bounds what is lost.
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 recipe/soup/slurm.sh recipe/soup/run_qwen2.5_math_7b.sh [SETTINGS]
#
# Submit from the repository's root, which must be, like the data and runs/, at the same path on every node.
# Prepare data and model first where there is a network: the run script does it, and ends then with the setting
# soup.preflight_only=true.
#   VENV          the environment (default: the one that is active, else .venv)
#   HEAD_ADDRESS  the first node's address for Ray (default: its first one); RAY_PORT there (default 6379)
#   GRACE         seconds that a run, or Ray, has to end when it is asked to (default 60)
#   NAME, KEEP, STEPS ... are the run script's knobs; NNODES and GPUS come from Slurm
# shellcheck disable=SC2329 # the traps call what it takes for unused
#SBATCH --job-name=soup
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
set -euo pipefail

die() { echo "slurm.sh: $*" >&2; exit 1; }
say() { echo "slurm.sh: $*"; }

[[ -n ${SLURM_JOB_ID:-} ]] || die "to be given to sbatch; see the first lines of the file"
cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file from a folder of its own
[[ -f ${1:-} ]] || die "the first argument must be a run script, relative to $PWD: got '${1:-}'"
venv=${VENV:-${VIRTUAL_ENV:-.venv}}
PATH=$(realpath "$venv")/bin:$PATH
command -v ray >/dev/null || die "no ray in $venv: install there, or set VENV"
export PATH NNODES=$SLURM_JOB_NUM_NODES GPUS=${GPUS:-$SLURM_GPUS_ON_NODE}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=${RAY_PORT:-6379}
head_address=${HEAD_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)} # this runs on the first node
export RAY_ADDRESS=$head_address:$port
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # srun passes the environment on
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

unset ROCR_VISIBLE_DEVICES # Slurm may set it beside CUDA_VISIBLE_DEVICES, in every step; verl refuses both together
run=
ray_steps=()

# end PID...: ask the processes to end, and after GRACE seconds make them. (Ray takes up to 30 s.)
end() {
  local deadline=$((SECONDS + ${GRACE:-60}))
  kill "$@" 2>/dev/null || true
  while kill -0 "$@" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.2; done
  kill -KILL "$@" 2>/dev/null || true
}

end_all() {
  trap '' USR1
  if [[ -n $run ]]; then end "$run"; fi
  if ((${#ray_steps[@]})); then end "${ray_steps[@]}"; fi
}

near_limit() {
  say "the time limit is near: stopping, to be requeued"
  end_all
  scontrol requeue "$SLURM_JOB_ID" || die "scontrol requeue $SLURM_JOB_ID was refused: submit the same command again"
  exit 0
}
trap near_limit USR1
trap end_all EXIT

# start_ray NODES NUMBER OPTIONS...: Ray on each of them, as a Slurm step that lasts as long as Ray does.
start_ray() {
  local where=$1 number=$2
  shift 2
  srun --nodes="$number" --ntasks="$number" --nodelist="$where" --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none \
    --kill-on-bad-exit=1 env -u ROCR_VISIBLE_DEVICES ray start --block "$@" &
  ray_steps+=($!)
}

# wait_for NUMBER: until so many nodes have joined.
wait_for() {
  local deadline=$((SECONDS + 300)) joined=0
  while ((joined < $1)); do
    # The step that was started last: srun ends it whole when Ray ends on one of its nodes.
    kill -0 "${ray_steps[-1]}" 2>/dev/null || die "Ray ended on a node before all had joined"
    ((SECONDS < deadline)) || die "$joined of $1 Ray nodes after 300 s at $RAY_ADDRESS"
    sleep 1
    joined=$(ray status 2>/dev/null | grep -c '^ *[0-9]* node_' || true)
  done
}

say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${nodes[*]}"
start_ray "${nodes[0]}" 1 --head --port="$port" --node-ip-address="$head_address" --include-dashboard=false
wait_for 1
if ((NNODES > 1)); then
  start_ray "$(IFS=, && echo "${nodes[*]:1}")" "$((NNODES - 1))" --address="$RAY_ADDRESS"
  wait_for "$NNODES"
fi

bash "$@" &
run=$!
code=0
wait "$run" || code=$? # a trapped signal ends the wait, and near_limit the script
run=
say "the run ended with exit code $code"
exit "$code"
