"""What a row is judged as: mathematics, or the domain that its `extra_info["domain"]` names.

A domain is a module with the members of `Domain`. Another one is a module, a line of `DOMAINS`, and its data sets in
`data/datasets.py`; reward, preflight, data preparation and evaluation then know it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

from soup_verl.tasks.data.cleaning import RowRules
from soup_verl.tasks.data.datasets import DatasetSpec, Problem
from soup_verl.tasks.data.prompt_templates import Instruction

MATHEMATICS = "mathematics"
DOMAINS = {
    MATHEMATICS: "soup_verl.tasks.mathematics",
    "code": "soup_verl.tasks.code",
    "choice": "soup_verl.tasks.choice",
    "puzzles": "soup_verl.tasks.puzzles",
    "instructions": "soup_verl.tasks.text.instructions",
    "summaries": "soup_verl.tasks.text.summaries",
}
"""Name -> module, imported when a row of it is met."""
FIELDS = ("score", "acc", "format", "timeout", "error", "pred")
"""What every domain's `score` returns: verl's validation needs the same fields of all rows of a batch."""


class Domain(Protocol):
    """The members of a domain's module, which is cheap to import.

    Attributes:
        KEYWORDS: names of the `reward_kwargs` that `score` takes.
        INSTRUCTION: what a prompt asks for beside the question.
        ROWS: which rows data preparation drops or mends, and which are the same.
    """

    KEYWORDS: Collection[str]
    INSTRUCTION: Instruction
    ROWS: RowRules

    def score(
        self, data_source: str, response: str, gold: str, extra: Mapping[str, Any] | None, **keywords: Any
    ) -> dict[str, float | str]:
        """`FIELDS` of a response: `score`, the reward; `acc`, which validation averages; `format`, 1.0 if there is an
        answer to judge; `timeout`, 1.0 if time ran out; `error`, "" or why there was no verdict; `pred`, the answer.

        Raises:
            ValueError: the row is broken, or a keyword's value; never because of the response.
        """

    def check_row(self, data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
        """Raises ValueError, which names the field, of a row that cannot be scored."""

    def right_answers(self, gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
        """Responses of which at least one must be solved; none where none can be made up."""

    def check_keywords(self, given: Mapping[str, Any]) -> None:
        """Raises ValueError, `reward_kwargs.NAME=VALUE: expected ..`, of a value that a keyword cannot have."""

    def problems(self, spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
        """Problems from (row number, row). Raises DataError, which names the row."""


def find_domain(name: str) -> Domain:
    """The domain of this name.

    Raises:
        ValueError: lists the names there are.
    """
    if name not in DOMAINS:
        raise ValueError(f"domain={name!r}: expected one of {', '.join(DOMAINS)}")
    return cast(Domain, importlib.import_module(DOMAINS[name]))


def domain_name(extra_info: Mapping[str, Any] | None) -> str:
    """Of a row's extra fields; mathematics where they name none, as None, NaN or ""."""
    name = (extra_info or {}).get("domain")
    return MATHEMATICS if name is None or name == "" or name != name else str(name)


def domain_of(extra_info: Mapping[str, Any] | None) -> Domain:
    """The domain that a row is judged in. Raises ValueError as `find_domain`."""
    try:
        return find_domain(domain_name(extra_info))
    except ValueError as error:
        raise ValueError(f"extra_info.{error}") from None


def check_keywords(given: Mapping[str, Any]) -> None:
    """What must hold of `reward_kwargs` before a run starts: verl hands them on, and `compute_score` takes any name.

    Raises:
        ValueError: names the first that no domain has, or whose value a domain that has it cannot take.
    """
    domains = [find_domain(name) for name in DOMAINS]
    known = dict.fromkeys(name for domain in domains for name in domain.KEYWORDS)
    for name in given.keys() - known.keys():
        nearest = difflib.get_close_matches(name, known, 1)
        remedy = f". Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(
            f"reward_kwargs.{name}={given[name]!r}: expected no such key, but one of {', '.join(known)}{remedy}"
        )
    for domain in domains:
        domain.check_keywords({name: value for name, value in given.items() if name in domain.KEYWORDS})
