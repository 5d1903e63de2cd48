#!/usr/bin/env bash
# run_qwen2.5_math_7b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and 152 GB of host memory a node: four kept policies, and the current one while they sample, of
# 30.5 GB each in fp32 as the actor keeps them. A checkpoint has the kept policies: 550 GB of disk with KEEP=2.
set -euo pipefail
export NAME=${NAME:-qwen2.5_math_7b_soup_snapshot} METHOD=${METHOD:-snapshot}
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2.5_math_7b.sh" "$@"
