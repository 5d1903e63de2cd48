#!/usr/bin/env bash
# The GRPO baseline of run_qwen2.5_math_7b.sh: the same command with soup.mixed_fraction=0. Same hardware; same knobs.
set -euo pipefail
export NAME=${NAME:-qwen2.5_math_7b_grpo} METHOD=grpo
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2.5_math_7b.sh" "$@"
