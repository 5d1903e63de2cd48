#!/usr/bin/env bash
# run_r1_distill_qwen_1.5b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and 36 GB of host memory a node: four kept policies, and the current one while they sample, of
# 7.1 GB each in fp32 as the actor keeps them. A checkpoint has the kept policies: 130 GB of disk with KEEP=2.
set -euo pipefail
export NAME=${NAME:-r1_distill_qwen_1.5b_soup_snapshot} METHOD=${METHOD:-snapshot}
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_r1_distill_qwen_1.5b.sh" "$@"
