"""A few responses of a step, token by token, in `samples.jsonl` of the run's folder: one JSON object a line.

    trainer: choose rows -> record (decoded token by token) -> append        report: read

Plain Python: lists in, dicts out. The key `sample` counts the responses of a step from 0, over all of its mini-batches
where verl samples them one by one. A step that a resumed run repeats is appended again, and `read` takes the last word.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from soup_verl.records.files import read_json_lines

FILE = "samples.jsonl"

# Tokens kept of a long response: prefixes stand at its head, answers at its end.
HEAD, TAIL = 1024, 256
# Tokens to wait for the rest of a character: it has four bytes at most, but a token may end one and begin the next.
_LONGEST_WAIT = 16
_BROKEN = "\ufffd"

Decode = Callable[[Sequence[int]], str]


def due(step: int, *, every: int, count: int) -> bool:
    """Whether the responses of `step` are recorded: those of step 1 and of every `every`-th; 0 is never."""
    return every > 0 and count > 0 and (step == 1 or step % every == 0)


def numbers_of(part: int, parts: int, *, count: int) -> range:
    """Which of a step's `count` responses come from mini-batch `part` (from 0) of `parts`: about as many from each."""
    return range(count * part // parts, count * (part + 1) // parts)


def choose(rows: Sequence[int], is_mixed: Sequence[bool], *, numbers: range, seed: int) -> list[int]:
    """As many of `rows` as there are `numbers`, or all. Half of a step's are mixed, those with an even number, as far
    as there are that many of both kinds.

    Args:
        rows: the rows to choose from.
        is_mixed: of every row of the batch.
        numbers: those of the responses among all that are chosen of the step.
        seed: the same seed chooses the same rows.
    """
    mixed, onpolicy = [r for r in rows if is_mixed[r]], [r for r in rows if not is_mixed[r]]
    count, even = len(numbers), sum(number % 2 == 0 for number in numbers)
    of_mixed = min(len(mixed), max(even, count - len(onpolicy)))
    of_onpolicy = min(len(onpolicy), count - of_mixed)
    draw = random.Random(seed)
    return sorted(draw.sample(mixed, of_mixed)) + sorted(draw.sample(onpolicy, of_onpolicy))


def token_texts(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds; joined, it is the text of all.

    A character whose bytes are spread over several tokens is given to the last of them, the others get "". Each token
    is decoded behind the one before it, because some tokenizers write a leading space only there.
    """
    texts: list[str] = []
    context, done = 0, 0  # tokens from `context` on are decoded together; those before `done` have their text
    before = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[context:end])
        if text.endswith(_BROKEN) and end - done < _LONGEST_WAIT and end < len(token_ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        context, done = done, end
        before = decode(token_ids[context:done])
    return texts


def record(
    *,
    step: int,
    sample: int,
    index: int | str,
    session: int,
    reward: float,
    policy_version: int,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    response_mask: Sequence[int],
    prefix_mask: Sequence[int],
    behavior_log_probs: Sequence[float] | None,
    current_log_probs: Sequence[float] | None,
    decode: Decode,
) -> dict[str, Any]:
    """One response as it is written. Lists of tokens hold the first `HEAD` and the last `TAIL`, nothing between.

    Args:
        step, sample: training step; number of this response among those recorded of it.
        index, session: row of the data set; which of the prompt's responses.
        reward: of the response.
        policy_version: of the prefix's policy, -1 for an on-policy response.
        prompt_ids, response_ids: token ids, whole.
        response_mask: 1 on tokens that a policy sampled; others have no log-probs and no ratio.
        prefix_mask: 1 on prefix tokens.
        behavior_log_probs: under the policy that sampled the token; None if the engine reports none.
        current_log_probs: under the current policy before the update; None if the trainer did not recompute them.
        decode: token ids -> text.
    """
    kept = _kept(len(response_ids))
    places = [place for part in kept for place in part]
    behavior = _values(behavior_log_probs, response_mask, places)
    current = _values(current_log_probs, response_mask, places)
    return {
        "step": step,
        "sample": sample,
        "index": index,
        "session": session,
        "reward": _finite(reward),
        "policy_version": policy_version,
        "prompt": decode(prompt_ids),
        "response_tokens": len(response_ids),
        "left_out": {"after": len(kept[0]), "tokens": len(response_ids) - len(places)},
        "tokens": [text for part in kept for text in token_texts(response_ids[part.start : part.stop], decode)],
        "prefix_mask": [int(prefix_mask[place]) for place in places],
        "behavior_log_probs": behavior,
        "current_log_probs": current,
        "ratio": [_ratio(c, b) for c, b in zip(current, behavior, strict=True)],
    }


def _kept(length: int) -> tuple[range, range]:
    if length <= HEAD + TAIL:
        return range(length), range(0)
    return range(HEAD), range(length - TAIL, length)


def _values(values: Sequence[float] | None, mask: Sequence[int], places: Iterable[int]) -> list[float | None]:
    return [_finite(values[place]) if values is not None and mask[place] else None for place in places]


def _ratio(current: float | None, behavior: float | None) -> float | None:
    """exp(current - behavior); None where one is not known or the result is no number JSON has."""
    if current is None or behavior is None or current - behavior > 700:  # exp overflows
        return None
    return _finite(math.exp(current - behavior))


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def append(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Add `records` to the folder's `samples.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in records)
    with (folder / FILE).open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read() not in (b"", b"\n")  # by a kill; what is written now must not join it
        file.write((b"\n" if torn else b"") + lines.encode())


def read(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Records by step, in order; of a step that was recorded twice, the last. Empty if nothing was recorded."""
    path = folder / FILE
    steps: dict[int, list[dict[str, Any]]] = {}
    for _, entry in read_json_lines(path, skip_broken=True) if path.exists() else []:
        try:
            step, sample = entry["step"], entry["sample"]
        except (TypeError, KeyError):
            continue  # an evaluation's
        if sample == 0:
            steps[step] = []
        steps.setdefault(step, []).append(entry)
    return dict(sorted(steps.items()))
