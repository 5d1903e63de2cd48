#!/usr/bin/env bash
# run_r1_distill_qwen_1.5b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and up to 15 GB of host memory a node: four kept policies of 3.6 GB each in bfloat16, less where
# few weights change. A checkpoint has the kept policies: up to 75 GB of disk with KEEP=2.
set -euo pipefail
export NAME=${NAME:-r1_distill_qwen_1.5b_soup_snapshot} METHOD=snapshot
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_r1_distill_qwen_1.5b.sh" "$@"
