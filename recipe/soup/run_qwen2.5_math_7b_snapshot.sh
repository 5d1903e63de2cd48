#!/usr/bin/env bash
# run_qwen2.5_math_7b.sh with the paper's own source of prefixes: a buffer of past weights in host memory.
# Hardware: as there, and 15 GB of host memory a node for each kept policy (bf16; 30 GB if the actor keeps fp32).
set -euo pipefail
export NAME=${NAME:-qwen2.5_math_7b_soup_snapshot}
SNAPSHOT=(
  soup.source=snapshot
  soup.snapshot.every=10
  soup.snapshot.capacity=4
  soup.snapshot.choice=uniform
)
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2.5_math_7b.sh" "${SNAPSHOT[@]}" "$@"
