"""The domain of summaries: ROUGE between a response and a reference, by rouge-score.

ROUGE (Lin 2004, aclanthology.org/W04-1013) counts words that the two have in common. It is no measure of quality:
copied sentences, wrong statements and bad style may all score high, and a good summary in other words low.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soup_verl.tasks.data.cleaning import RowRules
from soup_verl.tasks.data.datasets import PLAIN_SUMMARY, DatasetSpec, Problem, read_fields
from soup_verl.tasks.data.prompt_templates import Instruction
from soup_verl.tasks.grading.boxes import answer_part

DOMAIN = "summaries"
INSTRUCTION = Instruction("Summarize the text. Answer with the summary alone.", "Summarize the text.")
KEYWORDS = ("rouge",)
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""Words, pairs of words, the longest common subsequence of all, and of each sentence (a line each)."""
MAX_SUMMARY = 10_000
"""Characters: the longest common subsequence takes time by the product of the lengths."""


def score(
    data_source: str, response: str, gold: str, extra: Mapping[str, Any] | None = None, *, rouge: str = "rougeL"
) -> dict[str, float | str]:
    """Score a response.

    Args:
        rouge: which F1 of `KINDS` is the reward; words are stemmed.

    Returns:
        `score` and `acc`: ROUGE, from 0 to 1, so that "solved" (an acc above .5) means no more than that; `format`: 1.0
        if there is a text beside thoughts; `timeout`: 0.0; `error`: "", `empty` or `too_long`; `pred`: the summary.

    Raises:
        ValueError: the row is broken, or there is no such kind.
    """
    check_keywords({"rouge": rouge})
    check_row(data_source, gold, extra)
    summary = answer_part(response).strip()
    error = "too_long" if len(summary) > MAX_SUMMARY else "" if summary else "empty"
    value = 0.0 if error else float(_scorer(rouge).score(gold, summary)[rouge].fmeasure)
    pred = summary[:MAX_SUMMARY].encode("utf-8", "replace").decode()
    return {"score": value, "acc": value, "format": float(bool(summary)), "timeout": 0.0, "error": error, "pred": pred}


@functools.cache
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


def check_row(data_source: str, gold: Any, extra: Mapping[str, Any] | None) -> None:
    """See `Domain`. A reference needs letters or digits of ASCII, which are all that rouge-score counts."""
    fine = isinstance(gold, str) and len(gold) <= MAX_SUMMARY and any(c.isascii() and c.isalnum() for c in gold)
    if not fine:
        raise ValueError(
            f"ground_truth={str(gold)[:60]!r} of a row of data_source={data_source!r}: expected a reference summary in "
            f"Latin letters, of at most {MAX_SUMMARY} characters"
        )


def right_answers(gold: Any, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """See `Domain`."""
    yield gold


def check_keywords(given: Mapping[str, Any]) -> None:
    """See `Domain`."""
    if given.get("rouge", KINDS[0]) not in KINDS:
        raise ValueError(f"reward_kwargs.rouge={given['rouge']!r}: expected one of {', '.join(KINDS)}")


def fault(problem: Problem) -> tuple[str, str] | None:
    """A reference that nothing can be compared with."""
    if not problem.gold.strip():
        return "empty_gold", ""
    try:
        check_row("", problem.gold, None)
    except ValueError as error:
        return "unusable_reference", str(error).split(" of a row of ")[0]
    return None


ROWS = RowRules(fault=fault, drops={"unusable_reference": "no Latin letters in it, or too long"})


def problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """See `Domain`."""
    return (Problem(**fields, domain=DOMAIN) for fields in read_fields(spec, rows, PLAIN_SUMMARY))
