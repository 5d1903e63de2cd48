"""What to look for in each figure of the report."""

REWARD = "Mean over all responses of a step. Look at the slope, and at where it flattens."
VALIDATION = "Mean score of the validation responses."
VALIDATION_PASS = (
    "Chance that one of k responses to a validation prompt is right, estimated without bias from all that it "
    "has. pass@1 rising while the largest k falls is diversity lost: the lines of one colour close up from above."
)
KINDS = (
    "Mixed responses start with a historical prefix. Well below on-policy ones: the prefixes are too old or too long. "
    "The same: they add nothing yet, or cost nothing. Wholly stale responses, where updates interrupt sampling, have "
    "no token of the current policy."
)
ENTROPY = (
    "Of the current policy. A fall to near 0 is the collapse that history is meant to slow down; a rise without "
    "reward is noise."
)
KL = (
    "First panel: how far the prefixes' policies are from the one before the update. Near 0 for long: history is no "
    "different from the present. Growing without end: it is too old. Dotted, unless under a hundredth of that: the "
    "noise floor, what the rollout engine's rounding shows by itself. While updating: from the policy that sampled "
    "the token (or as the objective has it) to the one being trained; 0 on-policy where a step has one update."
)
RATIO = (
    "Probability under the policy being trained, over that under the policy that sampled the token. 1 is on-policy; "
    "means far from 1, or ever larger maxima, are mismatch."
)
LOST = "Share of the summed |advantage| on tokens whose gradient clipping makes 0. High on prefixes: they teach little."
AGE = "Steps between the policy of a prefix and the one that continues it. A gap: no prefixes in those steps."
LENGTH = "Tokens of a response that come from its historical policy, over mixed responses only."
TIME = (
    "The stages of a step, without validation. Prefixes that are sampled while the batch's own responses are awaited "
    "are inside generation."
)
TOKENS = "Tokens the rollout engine decoded for the step's responses: the budget at which runs should be compared."
PASS = (
    "Chance that one of k responses is right, with its interval. Lines that cross: better at one try, fewer problems "
    "in reach."
)
MAJ = "Chance that the most frequent answer of k responses is right, with its interval."
