#!/usr/bin/env bash
# The run script of one run of a sweep, for slurm.sh, which sets the number of nodes and of their GPUs.
set -euo pipefail
exec python -m recipe.soup.main_soup "$@" trainer.nnodes="$NNODES" trainer.n_gpus_per_node="$GPUS"
