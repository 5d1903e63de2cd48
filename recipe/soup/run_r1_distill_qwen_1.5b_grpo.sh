#!/usr/bin/env bash
# The GRPO baseline of run_r1_distill_qwen_1.5b.sh: the same command with soup.mixed_fraction=0. Same hardware; same knobs.
set -euo pipefail
export NAME=${NAME:-r1_distill_qwen_1.5b_grpo} METHOD=grpo
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_r1_distill_qwen_1.5b.sh" "$@"
