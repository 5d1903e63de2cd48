#!/usr/bin/env bash
# SOUP, or GRPO, with verl's own tool agent loop on this machine's CPU: a model of 1.3 million parameters works sums out
# with a calculator, a turn a call.
#
#   bash examples/tools/run.sh                     replay: whole recorded turns are played back, up to a cut
#   SOURCE=lookahead bash examples/tools/run.sh    prefixes in the first turn
#   METHOD=grpo bash examples/tools/run.sh         the baseline: the same run without historical tokens
#   bash examples/tools/run.sh soup.mixed_fraction=0.25    any setting of the recipe
#
# Needs Python 3.11 or 3.12 and a C compiler; 2 cores, 8 GB of memory, 6 GB of disk. More knobs: examples/common/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

OUT=${OUT:-runs/tools}
SOURCE=${SOURCE:-replay}
source examples/common/train.sh
"$PYTHON" examples/tools/teach.py --out "$OUT/assets"
assets "$OUT/assets"
lengths 48 96 160 # a response is all turns, the tool's answers included
TOOLS=(
  actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent
  actor_rollout_ref.rollout.multi_turn.enable=true
  actor_rollout_ref.rollout.multi_turn.function_tool_path=examples/tools/calculator.py
  actor_rollout_ref.rollout.multi_turn.max_assistant_turns=5
)
train "${TOOLS[@]}" reward.custom_reward_function.path=examples/quickstart/reward.py soup.prefix_length.high=24 "$@"
