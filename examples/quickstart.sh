#!/usr/bin/env bash
# GRPO and SOUP side by side on this machine's CPU: real verl, vLLM and Ray, a model of 1.3 million parameters that
# learns to add. Under 15 minutes on 2 cores, the first installation included; 8 GB of memory, 6 GB of disk.
#
#   bash examples/quickstart.sh                       everything into runs/quickstart
#   STEPS=20 bash examples/quickstart.sh              shorter
#   bash examples/quickstart.sh soup.lookahead.age=8  any setting of the recipe, for both runs
#
# Needs Python 3.11 or 3.12 and a C compiler. Both runs share one set of processes, one after the other. A run that has
# finished is not repeated, one that was interrupted goes on from its last checkpoint; OUT=... starts afresh elsewhere.
# More knobs: examples/common/train.sh, all but METHOD: both are trained.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT=${OUT:-runs/quickstart}
MIXED_FRACTION=${MIXED_FRACTION:-0.5}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # an interrupted quickstart leaves no run behind
source examples/common/train.sh
"$PYTHON" examples/quickstart/prepare.py --out "$OUT/assets"
assets "$OUT/assets"
lengths 48 40 96

mkdir -p "$OUT"
echo "== $STEPS steps each, log in $OUT/log.txt"
"$PYTHON" -m recipe.soup.main_series --out "$OUT" \
  --run grpo soup.mixed_fraction=0 --run soup soup.mixed_fraction="$MIXED_FRACTION" \
  -- "${COMMON[@]}" reward.custom_reward_function.path=examples/quickstart/reward.py soup.lookahead.age=4 "$@" \
  >"$OUT/log.txt" 2>&1 &
"$PYTHON" examples/quickstart/progress.py --runs "$OUT/grpo" "$OUT/soup" --steps "$STEPS" --process $!
wait $! || { tail -n 3 "$OUT/log.txt" >&2; exit 1; }
"$PYTHON" examples/quickstart/summarize.py --grpo "$OUT/grpo" --soup "$OUT/soup" \
  --source "$SOURCE" --mixed-fraction "$MIXED_FRACTION" --out "$OUT"
