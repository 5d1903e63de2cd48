#!/usr/bin/env bash
# SOUP, or GRPO, on instructions that can be checked, on this machine's CPU: a model of 1.3 million parameters names
# colours as it is told to.
#
#   bash examples/text/run.sh                     SOUP with the look-ahead
#   METHOD=grpo bash examples/text/run.sh         the baseline: the same run without historical tokens
#   bash examples/text/run.sh soup.mixed_fraction=0.25    any setting of the recipe
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk. More knobs: examples/common/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${OUT:-runs/text}
STEPS=${STEPS:-12}
source examples/common/train.sh
"$PYTHON" examples/text/teach.py --out "$OUT/assets"
assets "$OUT/assets"
lengths 64 48 112
train reward.custom_reward_function.path=pkg://soup_verl.reward "$@"
