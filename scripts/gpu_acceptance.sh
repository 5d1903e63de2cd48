#!/usr/bin/env bash
# What works on this machine's GPU, in under ten minutes and without a network: run it before the first real run.
#   bash scripts/gpu_acceptance.sh [--cpu] [--out FILE]
# flash-attn, the objective in bfloat16, kept policies under FSDP1 and FSDP2, three training steps on verl and vLLM. A
# table, and the same as JSON in FILE (default gpu_acceptance.json). What is missing is skipped with its reason; torch
# and transformers are enough to start. Exit code 1 if a check fails or nothing ran on a GPU; --cpu asks for none.
# PYTHON names the interpreter (default python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
exec "${PYTHON:-python3}" -m soup_verl.acceptance "$@"
