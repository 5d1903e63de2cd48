#!/usr/bin/env bash
# SOUP, or GRPO, on programs judged by tests in the sandbox, on this machine's CPU: a model of about a million parameters
# writes one-line programs for formulas in words.
#
#   bash examples/code/run.sh                     SOUP with the look-ahead
#   METHOD=grpo bash examples/code/run.sh         the baseline: the same run without historical tokens
#   bash examples/code/run.sh soup.mixed_fraction=0.25    any setting of the recipe
#   KEYWORDS=isolation=limits bash examples/code/run.sh   where the machine allows no namespaces (docs/code_rewards.md)
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk. More knobs: examples/common/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${OUT:-runs/code}
source examples/common/train.sh
"$PYTHON" examples/code/teach.py --out "$OUT/assets"
assets "$OUT/assets"
lengths 48 32 96
train reward.custom_reward_function.path=pkg://soup_verl.reward \
  ${KEYWORDS:+"+reward.custom_reward_function.reward_kwargs.$KEYWORDS"} "$@"
