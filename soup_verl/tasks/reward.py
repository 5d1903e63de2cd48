"""The reward of every domain, as verl calls it:

    reward.custom_reward_function.path=pkg://soup_verl.reward reward.custom_reward_function.name=compute_score

verl calls `compute_score` in threads of its reward workers. It never raises on a response, and runs none as code in
this process. A row is mathematics (`mathematics.py`) unless it names another of the domains in `domains.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soup_verl.tasks.domains import domain_of


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **kwargs: Any
) -> dict[str, float | str]:
    """Score a response.

    Args:
        data_source: name of the data set, for messages.
        solution_str: the response as text, without the prompt.
        ground_truth: what the row's domain judges by: the expected answer in mathematics, JSON text in others.
        extra_info: the row's extra fields; `domain` names its domain.
        **kwargs: those in the domain's `KEYWORDS`, set with `+reward.custom_reward_function.reward_kwargs.NAME`;
            others, as verl passes, are not used; a mistyped one would end here: see `domains.check_keywords`.

    Returns:
        `domains.FIELDS`.

    Raises:
        ValueError: the row itself is broken, or a keyword has a value that it cannot have.
    """
    domain = domain_of(extra_info)
    keywords = {name: value for name, value in kwargs.items() if name in domain.KEYWORDS}
    return domain.score(data_source, str(solution_str), ground_truth, extra_info, **keywords)
