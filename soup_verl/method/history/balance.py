"""Steering a prompt's pass rate by what is cut for it: `soup.replay.choice=balanced`.

Prefix Sampling (arXiv 2605.05112, of which only the abstract was at hand) gives mostly failing groups a head start from
a success and handicaps mostly passing ones with a failure, so that half of the responses pass. What moves a pass rate
is the length of the cut, which differs by prompt; how the paper adapts it was not available to us. This is ours:

    which way   by the on-policy responses of the prompt's last visit: below the target successes are cut, above it
                failures, at it nothing. Mixed responses have no say here: they pass or fail because of the prefix, and
                would turn the control against its own effect.
    how far     by the mixed responses, whose pass rate is what is steered and can be seen nowhere else:
                    share <- share + gain * (target - their rate)       where successes are cut, and the negative of
                                                                        it where failures are
                with gain = max(1 / (1 + number of updates), 0.1), between the bounds of `soup.prefix_length`. A longer
                success raises the rate and a longer failure lowers it, so this is stochastic approximation
                (Robbins and Monro 1951); the gain's floor lets it follow a policy that moves.

The share is one for both ways: near the target it is near its lower bound on either side, so it need not start anew
where a prompt crosses over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

MIN_GAIN = 0.1


@dataclass(slots=True)
class _Prompt:
    """What is known of a prompt: the last on-policy rate, the share of a response that is cut, and its updates."""

    rate: float
    share: float
    updates: int = 0


class PassRateControl:
    """Whether a prompt's successes or failures are cut, and where. Some 200 bytes for each prompt that was visited.

    Args:
        target: the pass rate that mixed responses are steered to, between 0 and 1.
        low, high: bounds of the share of a response that is cut; it starts half way between them.
    """

    def __init__(self, target: float, *, low: float, high: float):
        self._target, self._low, self._high = target, low, high
        self._prompts: dict[str, _Prompt] = {}

    def cut(self, prompt_key: str) -> tuple[str, float] | None:
        """The stored responses to take (a choice of `response_choice`), and the share of each; None: cut nothing."""
        prompt = self._prompts.get(prompt_key)
        if prompt is None or prompt.rate == self._target:
            return None
        return ("latest_right" if prompt.rate < self._target else "latest_wrong"), prompt.share

    def observe(self, onpolicy: Mapping[str, float], mixed: Mapping[str, float]) -> None:
        """Take in the pass rates of a step by prompt key; its mixed responses were cut as `cut` has said last."""
        for key, rate in mixed.items():
            prompt = self._prompts[key]
            prompt.updates += 1
            way = 1 if prompt.rate < self._target else -1
            moved = prompt.share + max(1 / (1 + prompt.updates), MIN_GAIN) * way * (self._target - rate)
            prompt.share = min(max(moved, self._low), self._high)
        for key, rate in onpolicy.items():
            self._prompts.setdefault(key, _Prompt(rate, (self._low + self._high) / 2)).rate = rate

    def metrics(self) -> dict[str, float]:
        """`soup/balanced_*`: the prompts it knows, those of them it has steered, and their mean share."""
        steered = [prompt.share for prompt in self._prompts.values() if prompt.updates]
        found = {
            "soup/balanced_prompts_total": float(len(self._prompts)),
            "soup/balanced_steered_prompts_total": float(len(steered)),
        }
        return found | ({"soup/balanced_share_mean": fmean(steered)} if steered else {})

    def state(self) -> dict[str, list[float]]:
        """Everything it knows, as JSON can hold it."""
        return {key: [prompt.rate, prompt.share, prompt.updates] for key, prompt in self._prompts.items()}

    def take_up(self, state: Mapping[str, list[float]]) -> None:
        """Go on from what `state` gave."""
        self._prompts = {key: _Prompt(rate, share, int(updates)) for key, (rate, share, updates) in state.items()}
