#!/usr/bin/env bash
# The contract and unit tests against the versions that GPUs get, in an environment of their own (10 GB) without flash-attn
# and without a GPU. By hand, whenever a pin moves; docs/gpu.md has the last result.
#   bash scripts/check_gpu_pins.sh [VENV_DIR]
# Without VENV_DIR it is made in a temporary folder and removed when everything passes. PYTHON is install.sh's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == -* ]]; then echo "check_gpu_pins.sh: '$1': the argument is the environment's folder" >&2; exit 2; fi
venv=${1:-$(mktemp -d)/venv}
echo "environment: $venv"
FLASH_ATTN_WHEEL=none bash scripts/install.sh "$venv" gpu,test
"$venv/bin/python" -m pytest -n 2 tests/contract tests/unit
if [[ -z ${1:-} ]]; then rm -r "$(dirname "$venv")"; fi
