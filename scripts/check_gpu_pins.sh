#!/usr/bin/env bash
# The contract tests, and the unit tests of what touches verl, vLLM or torch, against the versions that GPUs get: in an
# environment of their own (10 GB), without flash-attn and without a GPU. By hand, whenever a pin moves.
#   bash scripts/check_gpu_pins.sh [VENV_DIR]
# Without VENV_DIR it is made in a temporary folder and removed when everything passes. Further runs with the same
# VENV_DIR install only what changed. PYTHON names the interpreter, as for install.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:-$(mktemp -d)/venv}
FLASH_ATTN_WHEEL=none bash scripts/install.sh "$venv" gpu,test
"$venv/bin/python" -m pytest -n 2 tests/contract tests/unit
if [[ -z ${1:-} ]]; then rm -r "$(dirname "$venv")"; else echo "kept: $venv"; fi
