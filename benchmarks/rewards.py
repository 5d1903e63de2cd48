"""Score a response to one of the benchmark tasks: 1.0 where its answer is valid, 0.0 otherwise.

The task's name is the data source and the question the ground truth, because most questions have several valid answers.
A response is only ever matched against a pattern and taken apart as text: nothing in it is evaluated. Tasks not about
numbers and letters are in domains.py, whose `compute_score` takes these too.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

END = "<|im_end|>"
EXPRESSION = re.compile(r"[1-9][0-9]?(?:[+-][1-9][0-9]?){2,8}")
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,9})")
LEAST_TERMS = 3  # of a countdown answer; `EXPRESSION` has it as 1 and at least 2 more
LONGEST = 200  # characters of a response that are looked at; every task's answers are far shorter

Verdict = tuple[bool, str]
"""Whether the answer is valid, and the answer in one spelling ("" where there is none)."""


def countdown_terms(text: str) -> list[int] | None:
    """The signed numbers of "12+5-7", in order; None for anything but three to nine numbers joined by + and -."""
    if not EXPRESSION.fullmatch(text):
        return None
    return [int(term) for term in re.findall(r"[+-]?[0-9]+", text)]


def check_countdown(question: str, answer: str) -> Verdict:
    """`question` "3,9,5,7,3=10": at least three of the numbers, each once, must give the target.

    Two answers are the same if they add and subtract the same numbers; terms are ordered by size in the one spelling.
    """
    given, target = question.split("=")
    terms = countdown_terms(answer)
    if terms is None:
        return False, ""
    left_over = Counter(abs(term) for term in terms) - Counter(map(int, given.split(",")))
    spelling = "".join(f"{term:+d}" for term in sorted(terms, reverse=True))
    return not left_over and sum(terms) == int(target), spelling


def check_chain_sum(question: str, answer: str) -> Verdict:
    """`question` "27+45-13=": the last line must be the result."""
    last = answer.rsplit("\n", 1)[-1]
    if not INTEGER.fullmatch(last):
        return False, ""
    return int(last) == sum(map(int, re.findall(r"[+-]?[0-9]+", question))), last


def check_order(question: str, answer: str) -> Verdict:
    """`question` "kdbg:d<k,b<g": every letter once, each pair in the order that it stands in."""
    letters, _, pairs = question.partition(":")
    if sorted(letters) != sorted(answer):
        return False, ""
    place = {letter: i for i, letter in enumerate(answer)}
    return all(place[pair[0]] < place[pair[2]] for pair in pairs.split(",")), answer


CHECKERS: dict[str, Callable[[str, str], Verdict]] = {
    "countdown": check_countdown,
    "chain_sum": check_chain_sum,
    "chain_sum_8": check_chain_sum,
    "order": check_order,
}


# ---- how many answers are valid ----


def count_countdown(question: str) -> int:
    """Valid answers that differ in more than the order of their terms: number by number, how often it is added and how
    often subtracted. The target is positive, so some term is."""
    given, target = question.split("=")
    ways = Counter({(0, 0): 1})  # (sum, terms used) -> choices
    for number, copies in Counter(map(int, given.split(","))).items():
        longer: Counter[tuple[int, int]] = Counter()
        for added, subtracted in itertools.product(range(copies + 1), repeat=2):
            if added + subtracted <= copies:
                for (total, used), count in ways.items():
                    longer[total + (added - subtracted) * number, used + added + subtracted] += count
        ways = longer
    return sum(count for (total, used), count in ways.items() if total == int(target) and used >= LEAST_TERMS)


def count_chain_sum(question: str) -> int:
    """One."""
    return 1


def count_order(question: str) -> int:
    """Orders of the letters that keep every pair: counted by the set of letters that have been placed."""
    letters, _, pairs = question.partition(":")
    index = {letter: i for i, letter in enumerate(letters)}
    before = [0] * len(letters)
    for pair in pairs.split(","):
        before[index[pair[2]]] |= 1 << index[pair[0]]
    ways = [1] + [0] * ((1 << len(letters)) - 1)
    for placed, count in enumerate(ways):
        for i, needed in enumerate(before):
            if count and not placed >> i & 1 and needed & ~placed == 0:
                ways[placed | 1 << i] += count
    return ways[-1]


COUNTS: dict[str, Callable[[str], int]] = {
    "countdown": count_countdown,
    "chain_sum": count_chain_sum,
    "chain_sum_8": count_chain_sum,
    "order": count_order,
}


def compute_score(data_source: str, solution_str: str, ground_truth: str) -> dict[str, float | str]:
    """Check an answer.

    Args:
        data_source: the task, a key of `CHECKERS`.
        solution_str: the response as text, without the prompt.
        ground_truth: the question.

    Returns:
        `score`, the reward, and `acc`, which verl's validation averages: both 1.0 or 0.0; `pred`, the answer in one
        spelling ("" for none).

    Raises:
        ValueError: the task is not known. Never for what the response says.
    """
    if data_source not in CHECKERS:
        raise ValueError(f"data_source={data_source!r}: expected one of {', '.join(CHECKERS)}")
    answer = str(solution_str).replace(END, "").strip()
    valid, spelling = CHECKERS[data_source](ground_truth, answer) if len(answer) <= LONGEST else (False, "")
    return {"score": float(valid), "acc": float(valid), "pred": spelling}
