#!/usr/bin/env bash
# run_r1_distill_qwen_1.5b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and 3.6 GB of host memory a node for each kept policy (bf16; 7.1 GB if the actor keeps fp32).
set -euo pipefail
export NAME=${NAME:-r1_distill_qwen_1.5b_soup_snapshot}
SNAPSHOT=(
  soup.source=snapshot
  soup.snapshot.every=10
  soup.snapshot.capacity=4
  soup.snapshot.choice=uniform
)
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_r1_distill_qwen_1.5b.sh" "${SNAPSHOT[@]}" "$@"
