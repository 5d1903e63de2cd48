"""Sample responses as the page shows them: pieces of text, each with its place, segment and ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soup_verl.method.mixing import UNLEARNED
from soup_verl.records import sample_log
from soup_verl.reporting.compare import Group

SHOWN = 5
# verl's default clip range; tokens outside are marked.
NEAR_1 = (0.8, 1.2)


@dataclass(frozen=True)
class Token:
    """One token: its text, whether it is of the prefix, whether its ratio is far from 1, and what the tooltip says."""

    text: str
    in_prefix: bool
    far: bool
    note: str


@dataclass(frozen=True)
class SampleResponse:
    """One response; `gap` tokens are left out before token number `gap_at` of `tokens`."""

    title: str
    prompt: str
    tokens: Sequence[Token]
    gap_at: int
    gap: int


def of_group(group: Group) -> tuple[int, str, list[SampleResponse]] | None:
    """Step, name of the run and responses of the group's first run that recorded any; None if none did."""
    run = next((run for run in group.runs if run.samples), None)
    if run is None:
        return None
    return run.samples[0]["step"], run.name, [response(entry) for entry in shown(run.samples)]


def shown(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`SHOWN` of a step's records, both kinds as `sample_log.choose` would have them of so many."""
    is_mixed = [any(entry["prefix_mask"]) for entry in records]
    return [records[i] for i in sample_log.choose(range(len(records)), is_mixed, numbers=range(SHOWN), seed=0)]


def response(entry: Mapping[str, Any]) -> SampleResponse:
    """One record of `samples.jsonl`."""
    length, gap = entry["response_tokens"], entry["left_out"]["tokens"]
    gap_at = entry["left_out"]["after"] if gap else len(entry["tokens"])
    prefix = sum(entry["prefix_mask"])
    kind = f"prefix of {prefix} tokens by the {_policy(entry)}" if prefix else "on-policy"
    reward = "unknown" if entry["reward"] is None else f"{entry['reward']:g}"
    return SampleResponse(
        title=f"Row {entry['index']}, response {entry['session']}: {kind}, {length} tokens, reward {reward}",
        prompt=entry["prompt"],
        tokens=[_token(entry, i, gap_at, gap) for i in range(len(entry["tokens"]))],
        gap_at=gap_at,
        gap=gap,
    )


def _policy(entry: Mapping[str, Any]) -> str:
    version = entry["policy_version"]
    return "unlearned copy of the current policy" if version == UNLEARNED else f"policy of step {version}"


def _token(entry: Mapping[str, Any], i: int, gap_at: int, gap: int) -> Token:
    ratio, in_prefix = entry["ratio"][i], bool(entry["prefix_mask"][i])
    number = i + 1 + (gap if i >= gap_at else 0)
    parts = [
        f"token {number} of {entry['response_tokens']}",
        f"prefix, {_policy(entry)}" if in_prefix else "current policy",
        "ratio not known" if ratio is None else f"ratio {ratio:.4g}",
        _log_probs(entry["behavior_log_probs"][i], entry["current_log_probs"][i]),
    ]
    far = ratio is not None and not NEAR_1[0] <= ratio <= NEAR_1[1]
    return Token(entry["tokens"][i], in_prefix, far, "; ".join(part for part in parts if part))


def _log_probs(behavior: float | None, current: float | None) -> str:
    if behavior is None:
        return ""
    return f"log-prob {behavior:.3f} when sampled" + ("" if current is None else f", {current:.3f} before the update")
