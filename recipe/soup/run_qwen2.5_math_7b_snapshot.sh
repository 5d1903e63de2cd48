#!/usr/bin/env bash
# run_qwen2.5_math_7b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and up to 61 GB of host memory a node: four kept policies of 15.2 GB each in bfloat16, less where
# few weights change. A checkpoint has the kept policies: up to 310 GB of disk with KEEP=2.
set -euo pipefail
export NAME=${NAME:-qwen2.5_math_7b_soup_snapshot} METHOD=snapshot
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2.5_math_7b.sh" "$@"
