"""Score a quickstart response: 1.0 when its last line is the right number, 0.0 otherwise.

verl calls `compute_score` (`custom_reward_function.path=examples/quickstart/reward.py`). The response is only ever read
as text: nothing in it is evaluated.
"""

from __future__ import annotations

import re
from typing import Any

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def final_answer(response: object) -> str:
    """Return the last non-empty line of `response` as a plain integer ("-7"), or "" where it is not one."""
    lines = str(response).replace("<|im_end|>", "").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return str(int(last)) if INTEGER.fullmatch(last) else ""


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, float | str]:
    """Compare the final answer with the known result, exactly.

    Args:
        data_source: name of the data set; not used, there is one.
        solution_str: the response as text, without the prompt.
        ground_truth: the result, an integer as text.
        extra_info: the row's extra fields; not used.
        **kwargs: whatever else verl passes; not used.

    Returns:
        `score`, the reward, and `acc`, which verl's validation averages: both 1.0 or 0.0; `pred`, the answer found
        ("" for none). Never raises.
    """
    predicted = final_answer(solution_str)
    score = float(predicted != "" and predicted == final_answer(ground_truth))
    return {"score": score, "acc": score, "pred": predicted}
